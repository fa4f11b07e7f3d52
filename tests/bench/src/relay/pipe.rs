//! A plain proxy that lets splice(2) move bodies through a pipe: what user space can do at best without looking at them.
//!
//! It looks at less than a proxy must: a body with a length is moved to its end; a chunked one is taken to end with its
//! connection, because splice(2) does not show where it ends. The benchmark's event streams have no end.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::http;

/// The largest that an unprivileged process may ask for, by default.
const PIPE_BYTES: usize = 1 << 20;
const BACKLOG: u32 = 4096;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    worker: SocketAddr,
}

/// Serves until it is killed: a thread for each core, each with a listener of its own, as the gateway does it.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let threads = std::thread::available_parallelism()?.get();
    let (listen, worker) = (args.listen, args.worker);
    let serving: Vec<_> = (0..threads).map(|_| std::thread::spawn(move || serve(listen, worker))).collect();
    for thread in serving {
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(true)
}

fn serve(listen: SocketAddr, worker: SocketAddr) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(
        tokio::task::LocalSet::new().run_until(async {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseport(true)?;
            socket.bind(listen).with_context(|| format!("cannot listen at {listen}"))?;
            let listener: TcpListener = socket.listen(BACKLOG)?;
            loop {
                let (client, _) = listener.accept().await?;
                tokio::task::spawn_local(async move { connection(client, worker).await });
            }
        }),
    )
}

/// One client connection and the worker connection that goes with it.
async fn connection(mut client: TcpStream, worker: SocketAddr) -> Result<()> {
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect(worker).await?;
    server.set_nodelay(true)?;
    let (from, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    let pipe = Pipe { from, into };
    let _ = fcntl_setpipe_size(&pipe.into, PIPE_BYTES); // refused: it stays as large as it is
    let mut bytes = Vec::with_capacity(16 * 1024);
    while let Some(end) = http::read_head(&mut client, &mut bytes).await? {
        let total = end + http::content_length(&bytes[..end]).unwrap_or(0) as usize;
        while bytes.len() < total {
            ensure!(client.read_buf(&mut bytes).await? > 0, "a request broke off");
        }
        server.write_all(&bytes).await?;
        bytes.clear();
        let end = http::read_head(&mut server, &mut bytes).await?.context("the worker closed")?;
        let early = (bytes.len() - end) as u64;
        let left = http::content_length(&bytes[..end]).map_or(u64::MAX, |length| length - early);
        client.write_all(&bytes).await?;
        bytes.clear();
        pipe.relay(&server, &client, left).await?;
    }
    Ok(())
}

struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// Moves `left` bytes.
    async fn relay(&self, server: &TcpStream, client: &TcpStream, mut left: u64) -> Result<()> {
        while left > 0 {
            let count = left.min(PIPE_BYTES as u64) as usize;
            let moved = match server.try_io(Interest::READABLE, || step(server, &self.into, count)) {
                Ok(0) => anyhow::bail!("the worker closed"),
                Ok(moved) => moved,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::select! {
                        ready = server.readable() => ready?,
                        ready = client.readable() => {
                            ready?;
                            let read = client.try_read(&mut [0]);
                            let is_open = read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
                            ensure!(is_open, "the client hung up");
                        }
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            left -= moved as u64;
            let mut waiting = moved;
            while waiting > 0 {
                match client.try_io(Interest::WRITABLE, || step(&self.from, client, waiting)) {
                    Ok(moved) => waiting -= moved,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => client.writable().await?,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

fn step(from: impl AsFd, into: impl AsFd, count: usize) -> io::Result<usize> {
    Ok(splice(from, None, into, None, count, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
}
