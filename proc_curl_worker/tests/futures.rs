//! Requests as futures.

mod common;

use common::{Server, builder, pattern, reply};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_share_a_client() {
    const LEN: usize = 2 << 20;
    let server = Server::start(|asked, out| match asked.path.as_str() {
        "/large" => reply(out, "200 OK", "", &pattern(LEN)),
        path => reply(out, "200 OK", "", path.as_bytes()),
    });
    let client = builder().build_async().await.expect("a worker");
    let fetching: Vec<_> = (0..50)
        .map(|n| {
            let request = client.get(&server.url(&format!("/{n}")));
            tokio::spawn(async move { request.send_async().await?.bytes().await })
        })
        .collect();
    for (n, task) in fetching.into_iter().enumerate() {
        assert_eq!(task.await.expect("a task").expect("bytes"), format!("/{n}").as_bytes());
    }
    let mut response = client.get(&server.url("/large")).send_async().await.expect("an answer");
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.expect("a piece") {
        chunk.write_to(&mut bytes).expect("written");
    }
    assert!(bytes == pattern(LEN));
    assert_eq!(response.info().map(|info| info.delivered), Some(LEN as u64));
    let body = client.get(&server.url("/large")).send_async().await.expect("an answer").body().await.expect("a body");
    assert_eq!(body.len(), LEN as u64);
    let refused = client.get("http://127.0.0.1:1/").send_async().await.expect_err("a failure");
    assert_eq!(refused.code(), 7);
}
