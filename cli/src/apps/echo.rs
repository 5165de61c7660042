//! `tcp-echo`: says who it is in one line, then sends back what it gets.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Longest time that one connection may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest greeting that a caller reads.
const MAX_GREETING: u64 = 256;

/// Sends back the bytes of a TCP connection.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Nonce of this process
    #[arg(long)]
    instance: String,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    serve(listener, args.instance).await
}

async fn serve(listener: TcpListener, instance: String) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await.context("cannot accept")?;
        let greeting = format!("{instance}\n");
        tokio::spawn(timeout(PATIENCE, async move {
            let (mut from, mut to) = stream.split();
            to.write_all(greeting.as_bytes()).await?;
            tokio::io::copy(&mut from, &mut to).await?;
            to.shutdown().await
        }));
    }
}

/// Calls a `tcp-echo`: sends `message`, half-closes, and reads until the end.
/// Tells the nonce of the process that answered.
///
/// # Errors
/// If the connection ends early, or other bytes come back.
pub async fn call(address: SocketAddr, message: &[u8]) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true).ok();
    let (from, mut to) = stream.split();
    let mut from = BufReader::new(from);
    let send = async {
        to.write_all(message).await?;
        to.shutdown().await
    };
    let receive = async {
        let mut greeting = String::new();
        (&mut from)
            .take(MAX_GREETING)
            .read_line(&mut greeting)
            .await?;
        let mut back = Vec::with_capacity(message.len());
        let limit = u64::try_from(message.len()).unwrap_or(u64::MAX) + 1;
        (&mut from).take(limit).read_to_end(&mut back).await?;
        Ok::<_, std::io::Error>((greeting, back))
    };
    let ((), (greeting, back)) = tokio::try_join!(send, receive).context("echoing")?;
    ensure!(
        greeting.ends_with('\n'),
        "the connection ended before the greeting"
    );
    ensure!(
        back == message,
        "{} bytes sent, {} other bytes came back",
        message.len(),
        back.len()
    );
    Ok(greeting.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_message_comes_back_whole_with_the_instance() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, "n0nce".into()));
        let message = vec![7; 300_000];
        assert_eq!(call(address, &message).await.expect("echoed"), "n0nce");
    }

    #[tokio::test]
    async fn an_early_end_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"n0nce\nhal").await.ok();
            }
        });
        assert!(call(address, b"half").await.is_err());
    }
}
