//! ipc-channel: bytes, and shared memory that is the same each time.

use crate::answers::{Answers, Request, are_right, request, to_bytes, wanted};
use crate::round::{Asks, Serve, Serves};
use anyhow::Context;
use ipc_channel::IpcError;
use ipc_channel::ipc::{
    self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory,
};

/// Where answers go, and where requests come from.
type Ends<A> = (A, IpcBytesReceiver);

struct ByteServer {
    coming: Option<IpcOneShotServer<Ends<IpcBytesSender>>>,
    ends: Option<Ends<IpcBytesSender>>,
    answers: Answers,
}

pub(crate) fn serve_bytes(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let (coming, name) = IpcOneShotServer::new()?;
    Ok((Box::new(ByteServer { coming: Some(coming), ends: None, answers: Answers::new(options.bytes) }), name))
}

impl ByteServer {
    fn ends(&mut self) -> anyhow::Result<&Ends<IpcBytesSender>> {
        if let Some(coming) = self.coming.take() {
            self.ends = Some(coming.accept().map_err(plain)?.1);
        }
        self.ends.as_ref().context("nobody came")
    }
}

impl Serves for ByteServer {
    fn take(&mut self, count: u32) -> anyhow::Result<()> {
        let (_, from) = self.ends()?;
        for _ in 0..count {
            from.recv().map_err(plain)?;
        }
        Ok(())
    }

    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        self.ends()?;
        let (to, from) = self.ends.as_ref().context("nobody came")?;
        for _ in 0..rounds {
            let request = from.recv().map_err(plain)?;
            to.send(self.answers.get(wanted(&request)))?;
        }
        Ok(())
    }
}

struct ByteClient {
    to: IpcBytesSender,
    from: IpcBytesReceiver,
}

pub(crate) fn bytes(name: String) -> anyhow::Result<Box<dyn Asks>> {
    let ((to, requests), (answers, from)) = (ipc::bytes_channel()?, ipc::bytes_channel()?);
    IpcSender::<Ends<IpcBytesSender>>::connect(name)?.send((answers, requests)).map_err(plain)?;
    Ok(Box::new(ByteClient { to, from }))
}

impl Asks for ByteClient {
    fn send(&mut self, count: u32) -> anyhow::Result<()> {
        let bytes = to_bytes(&request(0));
        for _ in 0..count {
            self.to.send(&bytes)?;
        }
        Ok(())
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        self.to.send(&to_bytes(request))?;
        let answer = self.from.recv().map_err(plain)?;
        Ok(are_right(&answer, &answer, request[0]))
    }
}

struct SharedServer {
    coming: Option<IpcOneShotServer<Ends<IpcSender<IpcSharedMemory>>>>,
    ends: Option<Ends<IpcSender<IpcSharedMemory>>>,
    answers: [IpcSharedMemory; 2],
}

pub(crate) fn serve_shared(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let (coming, name) = IpcOneShotServer::new()?;
    let answers = Answers::new(options.bytes);
    let answers = [0, 1].map(|which| IpcSharedMemory::from_bytes(answers.get(which)));
    Ok((Box::new(SharedServer { coming: Some(coming), ends: None, answers }), name))
}

impl Serves for SharedServer {
    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        if let Some(coming) = self.coming.take() {
            self.ends = Some(coming.accept().map_err(plain)?.1);
        }
        let (to, from) = self.ends.as_ref().context("nobody came")?;
        for _ in 0..rounds {
            let request = from.recv().map_err(plain)?;
            to.send(self.answers[(wanted(&request) & 1) as usize].clone()).map_err(plain)?;
        }
        Ok(())
    }
}

struct SharedClient {
    to: IpcBytesSender,
    from: IpcReceiver<IpcSharedMemory>,
}

pub(crate) fn shared(name: String) -> anyhow::Result<Box<dyn Asks>> {
    let ((to, requests), (answers, from)) = (ipc::bytes_channel()?, ipc::channel()?);
    IpcSender::<Ends<IpcSender<IpcSharedMemory>>>::connect(name)?.send((answers, requests)).map_err(plain)?;
    Ok(Box::new(SharedClient { to, from }))
}

impl Asks for SharedClient {
    fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        self.to.send(&to_bytes(request))?;
        let answer = self.from.recv().map_err(plain)?;
        Ok(are_right(&answer, &answer, request[0]))
    }
}

/// Its errors do not all go from thread to thread.
fn plain(error: IpcError) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}
