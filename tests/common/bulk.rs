//! Messages with a lot in them, which tell when they are damaged.

use crate::cache_capnp::cache;
use strait::{Builder, Channel, Message, Received};

// Not every suite fills the larger ones.
#[allow(dead_code)]
pub const PART: usize = 50_000;

/// The byte at a place of a part: tells parts and places apart.
pub fn byte(part: usize, at: usize) -> u8 {
    (part.wrapping_mul(31) ^ at ^ at >> 8 ^ at >> 16) as u8
}

pub fn file(channel: &Channel<cache::Owned>, parts: usize, size: usize, sized: bool) -> Message<cache::Owned> {
    let bytes = parts * (size + 64) + 64;
    let mut builder = if sized { channel.create_msg_with_capacity(bytes) } else { channel.create_msg() };
    fill(&mut builder, parts, size);
    builder.freeze().expect("room")
}

pub fn fill(builder: &mut Builder<cache::Owned>, parts: usize, size: usize) {
    let mut list = builder.init_root().init_get_cache_rsp().init_file_parts(parts as u32);
    for part in 0..parts {
        let data = list.reborrow().get(part as u32).init_data(strait::data_len(size).expect("small enough"));
        data.iter_mut().enumerate().for_each(|(at, place)| *place = byte(part, at));
    }
}

pub fn check_file(received: &Received<cache::Owned>, parts: usize, size: usize) {
    let Ok(cache::GetCacheRsp(response)) = received.get().expect("root").which() else { panic!("no file") };
    let list = response.expect("file").get_file_parts().expect("parts");
    assert_eq!(list.len() as usize, parts);
    for part in 0..parts {
        let data = list.get(part as u32).get_data().expect("data");
        assert_eq!(data.len(), size);
        // Every page and both ends; every byte would only be slow.
        let places = (0..size).step_by(if size > 1 << 20 { 4093 } else { 1 }).chain([size - 1]);
        places.for_each(|at| assert_eq!(data[at], byte(part, at), "part {part}, byte {at}"));
    }
    assert!(received.size() >= parts * size);
}
