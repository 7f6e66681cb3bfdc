//! What the measurements have in common, here and in the workspace `peers/`: where processes run and what they use up,
//! whether the machine was busy with other things, and how figures are told and drawn.

pub mod cpus;
pub mod figures;
pub mod gauge;
pub mod machine;
pub mod other;
pub mod picture;
pub mod sheet;
