//! A daemon made of a script: it notes what it hears and answers with given bytes, one connection after the other.

use crate::Client;
use empathd_proto::admin::{AdminReply, AdminRequest, FromDaemon, ToDaemon};
use empathd_proto::audit::{Checkpoint, SignedCheckpoint};
use empathd_proto::frame;
use empathd_proto::{Problem, StoreId};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use tempfile::TempDir;

pub(crate) struct Fake {
    pub(crate) folder: TempDir,
    received: Receiver<ToDaemon>,
}

impl Fake {
    /// Answers each connection with the next of these replies.
    pub(crate) fn replies(replies: impl IntoIterator<Item = AdminReply>) -> Self {
        Self::outcomes(replies.into_iter().map(Ok))
    }

    /// Answers each connection with the next of these.
    pub(crate) fn outcomes(outcomes: impl IntoIterator<Item = Result<AdminReply, Problem>>) -> Self {
        let script = outcomes.into_iter().map(|outcome| frame_of(&FromDaemon::Done(Box::new(outcome)))).collect();
        Self::start(script, true)
    }

    pub(crate) fn replying(reply: AdminReply) -> Self {
        Self::replies([reply])
    }

    /// Answers one connection with these frames.
    pub(crate) fn answering(frames: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self::start(vec![frames.into_iter().collect::<Vec<_>>().concat()], true)
    }

    /// Answers the request and hangs up without reading what follows it.
    pub(crate) fn hanging_up(answer: Vec<u8>) -> Self {
        Self::start(vec![answer], false)
    }

    fn start(script: Vec<Vec<u8>>, patient: bool) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let listener = UnixListener::bind(folder.path().join("admin.sock")).expect("bound");
        let (sender, received) = channel();
        thread::spawn(move || {
            for answer in script {
                let (mut stream, _) = listener.accept().expect("a connection");
                hear(&mut stream, &sender, patient);
                stream.write_all(&answer).expect("answered");
            }
        });
        Self { folder, received }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.folder.path().join("admin.sock"))
    }

    /// What was heard before the last answer.
    pub(crate) fn received(&self) -> Vec<ToDaemon> {
        self.received.try_iter().collect()
    }
}

fn hear(stream: &mut UnixStream, sender: &Sender<ToDaemon>, patient: bool) {
    let request = read(stream);
    let upload = matches!(
        request,
        ToDaemon::Request(
            AdminRequest::Ingest { .. }
                | AdminRequest::RosterSet { .. }
                | AdminRequest::AdapterImport(_)
                | AdminRequest::BackupCreate { .. }
        )
    );
    sender.send(request).expect("noted");
    let mut more = upload && patient;
    while more {
        let message = read(stream);
        more = !matches!(message, ToDaemon::End);
        sender.send(message).expect("noted");
    }
}

fn read(stream: &mut UnixStream) -> ToDaemon {
    let mut header = [0; frame::HEADER_BYTES];
    stream.read_exact(&mut header).expect("a header");
    let mut payload = vec![0; frame::payload_bytes(header).expect("a good header")];
    stream.read_exact(&mut payload).expect("a payload");
    frame::decode(&payload).expect("a message")
}

pub(crate) fn frame_of(message: &FromDaemon) -> Vec<u8> {
    frame::encode(message).expect("small")
}

/// A checkpoint of this store, signed by one fixed key.
pub(crate) fn checkpoint(store: StoreId, size: u64, root: u8) -> SignedCheckpoint {
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    Checkpoint { origin: format!("empathd/{store}"), size, root: [root; 32] }.sign(&key)
}
