//! Rows of figures as they are told: JSON, one object a line, or a table.

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::Write;

/// A table under way. With JSON each row is told as it comes.
pub struct Sheet {
    json: bool,
    table: Table,
    rows: usize,
}

impl Sheet {
    /// With these columns, the first `names` of them words and the others figures, but for the last: marks.
    #[must_use]
    pub fn new(json: bool, names: usize, columns: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns);
        let figures = columns.len().saturating_sub(names + 1);
        for column in table.column_iter_mut().skip(names).take(figures) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Self { json, table, rows: 0 }
    }

    /// A row, as an object and as cells.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, row: &impl Serialize, cells: Vec<String>) -> anyhow::Result<()> {
        self.rows += 1;
        if self.json {
            let mut out = std::io::stdout().lock();
            serde_json::to_writer(&mut out, row).context("cannot write a row")?;
            out.write_all(b"\n")?;
            out.flush()?;
        }
        self.table.add_row(cells);
        Ok(())
    }

    /// An empty line between groups of rows.
    pub fn gap(&mut self) {
        if self.rows > 0 {
            self.table.add_row([""]);
        }
    }

    /// Prints the table and what it means, unless the rows were told already.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(self, notes: &str) -> anyhow::Result<()> {
        if !self.json {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}\n{notes}", self.table)?;
        }
        Ok(())
    }
}
