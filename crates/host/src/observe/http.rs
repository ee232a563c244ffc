//! Just enough HTTP/1.1 for `GET` over a unix socket, against a peer that may hang or lie.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as new_socket,
};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest head of a response, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Io(#[source] io::Error),
    #[error("no answer in time")]
    Late,
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer makes no sense: {0}")]
    Malformed(&'static str),
    #[error("{path}: status {status}")]
    Status { path: String, status: u16 },
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Late,
            _ => Error::Io(error),
        }
    }
}

/// Connects within the time left. A plain `connect` waits without end on a full backlog.
pub(super) fn dial(path: &Path, deadline: Instant) -> Result<UnixStream, Error> {
    let address = UnixAddr::new(path).map_err(|error| Error::Io(error.into()))?;
    loop {
        let fd = new_socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(|error| Error::Io(error.into()))?;
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => {
                let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(io::Error::from)?;
                let flags = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
                fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(io::Error::from)?;
                return Ok(UnixStream::from(fd));
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                left(deadline)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(Error::Io(error.into())),
        }
    }
}

/// The time left; an error when there is none.
fn left(deadline: Instant) -> Result<Duration, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Late);
    }
    Ok(left)
}

/// Writes everything before the deadline.
pub(super) fn send(stream: &mut UnixStream, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
    let mut rest = bytes;
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(rest) {
            Ok(0) => return Err(Error::Io(ErrorKind::WriteZero.into())),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads some bytes before the deadline; 0 at the end.
pub(super) fn receive(
    stream: &mut UnixStream,
    buffer: &mut [u8],
    deadline: Instant,
) -> Result<usize, Error> {
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return Ok(other?),
        }
    }
}

/// A peer that is asked several things.
pub(super) struct Client {
    path: PathBuf,
    deadline: Instant,
    max_body: usize,
    open: Option<Connection>,
    said: Said,
}

/// What a daemon says of itself with every answer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// `Server`: `Docker/20.10.24 (linux)`.
    pub server: String,
}

impl Client {
    /// Nothing is sent yet. All answers together have to be there by `deadline`; the body of each
    /// is at most `max_body` bytes.
    pub fn new(path: &Path, deadline: Instant, max_body: usize) -> Self {
        Self {
            path: path.to_owned(),
            deadline,
            max_body,
            open: None,
            said: Said::default(),
        }
    }

    /// What the daemon said of itself with its last answer.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Another client of the same peer, with the same deadline.
    pub fn again(&self) -> Self {
        Self::new(&self.path, self.deadline, self.max_body)
    }

    /// The same client with so much more time: for what somebody else was waited for.
    pub fn later(mut self, by: Duration) -> Self {
        self.deadline += by;
        if let Some(open) = &mut self.open {
            open.deadline = self.deadline;
        }
        self
    }

    /// The body of a `200` answer to `GET path`.
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        // A connection kept open may have been closed by the peer meanwhile: once more then.
        if let Some(mut connection) = self.open.take() {
            match connection.ask(path, self.max_body) {
                Ok(answer) => return self.keep(connection, answer, path),
                Err(Error::Io(_)) => {}
                Err(other) => return Err(other),
            }
        }
        let mut connection = Connection {
            stream: dial(&self.path, self.deadline)?,
            deadline: self.deadline,
            buffer: Vec::new(),
            at: 0,
        };
        let answer = connection.ask(path, self.max_body)?;
        self.keep(connection, answer, path)
    }

    fn keep(
        &mut self,
        connection: Connection,
        answer: Answer,
        path: &str,
    ) -> Result<Vec<u8>, Error> {
        if answer.keep_alive {
            self.open = Some(connection);
        }
        self.said = answer.said;
        if answer.status != 200 {
            return Err(Error::Status {
                path: path.to_owned(),
                status: answer.status,
            });
        }
        Ok(answer.body)
    }
}

struct Answer {
    status: u16,
    keep_alive: bool,
    said: Said,
    body: Vec<u8>,
}

struct Connection {
    stream: UnixStream,
    deadline: Instant,
    buffer: Vec<u8>,
    /// First byte of `buffer` that has not been used.
    at: usize,
}

/// How long a body is.
enum Length {
    Exactly(usize),
    Chunked,
    UntilEnd,
}

/// Everything before the body.
struct Head {
    status: u16,
    length: Length,
    keep_alive: bool,
    said: Said,
}

impl Connection {
    fn ask(&mut self, path: &str, max_body: usize) -> Result<Answer, Error> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: portcullis\r\nAccept: application/json\r\n\r\n"
        );
        send(&mut self.stream, request.as_bytes(), self.deadline)?;
        let Head {
            status,
            length,
            mut keep_alive,
            said,
        } = self.head()?;
        let body = match length {
            Length::Exactly(size) if size > max_body => return Err(Error::TooLarge(max_body)),
            Length::Exactly(size) => self.take(size)?,
            Length::Chunked => self.chunks(max_body)?,
            Length::UntilEnd => {
                keep_alive = false;
                self.rest(max_body)?
            }
        };
        Ok(Answer {
            status,
            keep_alive,
            said,
            body,
        })
    }

    fn fill(&mut self) -> Result<usize, Error> {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        let mut part = [0; 16 * 1024];
        let read = receive(&mut self.stream, &mut part, self.deadline)?;
        self.buffer.extend_from_slice(&part[..read]);
        Ok(read)
    }

    fn need(&mut self) -> Result<(), Error> {
        match self.fill()? {
            0 => Err(Error::Io(ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }

    /// A line without its CRLF; lone LF is taken too.
    fn line(&mut self, limit: usize) -> Result<String, Error> {
        let mut looked = 0;
        loop {
            let unused = &self.buffer[self.at..];
            if let Some(end) = unused[looked..].iter().position(|b| *b == b'\n') {
                let end = looked + end;
                let line = unused[..end].strip_suffix(b"\r").unwrap_or(&unused[..end]);
                let line = String::from_utf8_lossy(line).into_owned();
                self.at += end + 1;
                return Ok(line);
            }
            looked = unused.len();
            if looked > limit {
                return Err(Error::Malformed("a line without end"));
            }
            self.need()?;
        }
    }

    fn head(&mut self) -> Result<Head, Error> {
        let first = self.line(MAX_HEAD)?;
        let mut words = first.split(' ');
        let version = words.next().unwrap_or_default();
        if !version.starts_with("HTTP/1.") {
            return Err(Error::Malformed("no status line"));
        }
        let status = words
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or(Error::Malformed("no status"))?;
        let mut length = Length::UntilEnd;
        let mut keep_alive = version != "HTTP/1.0";
        let mut size = first.len();
        let mut said = Said::default();
        loop {
            let line = self.line(MAX_HEAD)?;
            if line.is_empty() {
                return Ok(Head {
                    status,
                    length,
                    keep_alive,
                    said,
                });
            }
            size += line.len();
            if size > MAX_HEAD {
                return Err(Error::Malformed("a head without end"));
            }
            let (name, value) = line
                .split_once(':')
                .ok_or(Error::Malformed("a header without colon"))?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => {
                    length = Length::Chunked;
                }
                "transfer-encoding" => return Err(Error::Malformed("an unknown encoding")),
                "content-length" if !matches!(length, Length::Chunked) => {
                    let size = value.parse().map_err(|_| Error::Malformed("a length"))?;
                    length = Length::Exactly(size);
                }
                "server" => said.server = value.to_owned(),
                "connection" => keep_alive = !value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
    }

    fn take(&mut self, size: usize) -> Result<Vec<u8>, Error> {
        while self.buffer.len() - self.at < size {
            self.need()?;
        }
        let body = self.buffer[self.at..self.at + size].to_vec();
        self.at += size;
        Ok(body)
    }

    fn chunks(&mut self, max_body: usize) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        loop {
            let line = self.line(1024)?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            // `from_str_radix` takes a plus sign, HTTP does not.
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(Error::Malformed("a chunk size"));
            }
            let size =
                usize::from_str_radix(digits, 16).map_err(|_| Error::Malformed("a chunk size"))?;
            if size > max_body - body.len() {
                return Err(Error::TooLarge(max_body));
            }
            if size == 0 {
                let mut trailers = 0;
                while !self.line(1024)?.is_empty() {
                    trailers += 1;
                    if trailers > 100 {
                        return Err(Error::Malformed("trailers without end"));
                    }
                }
                return Ok(body);
            }
            let chunk = self.take(size)?;
            body.extend_from_slice(&chunk);
            if !self.line(16)?.is_empty() {
                return Err(Error::Malformed("a chunk without end"));
            }
        }
    }

    fn rest(&mut self, max_body: usize) -> Result<Vec<u8>, Error> {
        loop {
            let ended = self.fill()? == 0;
            if self.buffer.len() > max_body {
                return Err(Error::TooLarge(max_body));
            }
            if ended {
                break;
            }
        }
        Ok(self.buffer.split_off(self.at))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A peer that answers each request of each connection with the next of `answers`, and then
    /// closes the connection, or keeps silent for good when `hang`.
    pub fn peer(path: &Path, answers: Vec<Vec<u8>>, hang: bool) {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let mut answers = answers.into_iter();
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut seen = Vec::new();
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) {
                    seen.push(byte[0]);
                    if !seen.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    seen.clear();
                    let Some(answer) = answers.next() else { break };
                    let _ = stream.write_all(&answer);
                    if answer.is_empty() || answer.starts_with(b"HTTP/1.0") {
                        break;
                    }
                }
                if hang {
                    kept.push(stream);
                }
            }
        });
    }

    /// What a client makes of one answer; the peer closes after it.
    fn check(answer: &str, expected: Result<&str, &str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        // The closing marker of `peer`: an empty second answer.
        peer(&path, vec![answer.as_bytes().to_vec()], false);
        let deadline = Instant::now() + Duration::from_millis(400);
        let mut client = Client::new(&path, deadline, 20);
        let got = client.get("/version");
        match (got, expected) {
            (Ok(body), Ok(text)) => assert_eq!(String::from_utf8_lossy(&body), text, "{answer:?}"),
            (Err(error), Err(text)) => assert_eq!(error.to_string(), text, "{answer:?}"),
            (got, _) => panic!("{answer:?}: {got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn answers() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Ok("abc"));
        check("HTTP/1.1 200 OK\ncontent-length:  3 \n\nabcdef", Ok("abc"));
        check("HTTP/1.0 200 OK\r\n\r\nabc", Ok("abc"));
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n3\r\nabc\r\n02;x=y\r\nde\r\n0\r\nTrailer: 1\r\n\r\n",
            Ok("abcde"),
        );
        check("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Ok(""));
    }

    #[test]
    fn hostile_answers() {
        check(
            "HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx",
            Err("/version: status 404"),
        );
        check(
            "SSH-2.0-x\r\n\r\n",
            Err("the answer makes no sense: no status line"),
        );
        check(
            "HTTP/1.1 many\r\n\r\n",
            Err("the answer makes no sense: no status"),
        );
        check(
            "HTTP/1.1 200 OK\r\nbroken\r\n\r\n",
            Err("the answer makes no sense: a header without colon"),
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            Err("the answer makes no sense: a length"),
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n",
            Err("the answer is larger than 20 bytes"),
        );
        check(
            "HTTP/1.0 200 OK\r\n\r\n123456789012345678901",
            Err("the answer is larger than 20 bytes"),
        );
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (chunks, error) in [
            (
                "ffffffffffffffffff\r\n",
                "the answer makes no sense: a chunk size",
            ),
            (
                "+3\r\nabc\r\n0\r\n\r\n",
                "the answer makes no sense: a chunk size",
            ),
            ("ffffffffffffffff\r\n", "the answer is larger than 20 bytes"),
            (
                "a\r\n0123456789\r\nb\r\n",
                "the answer is larger than 20 bytes",
            ),
            (
                "3\r\nabcdef\r\n",
                "the answer makes no sense: a chunk without end",
            ),
        ] {
            check(&format!("{chunked}{chunks}"), Err(error));
        }
        // The peer waits for the next request while the client waits for the rest of the answer.
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            Err("no answer in time"),
        );
        let endless = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(20_000));
        check(
            &endless,
            Err("the answer makes no sense: a head without end"),
        );
        check(
            &"x".repeat(200_000),
            Err("the answer makes no sense: a line without end"),
        );
    }

    #[test]
    fn one_connection_for_several_questions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let answer = |text: &str| {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            )
            .into_bytes()
        };
        // The empty answer closes the connection between two questions.
        peer(
            &path,
            vec![answer("a"), answer("b"), vec![], answer("c")],
            false,
        );
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut client = Client::new(&path, deadline, 20);
        for expected in ["a", "b", "c"] {
            assert_eq!(client.get("/x").unwrap(), expected.as_bytes());
        }
    }

    #[test]
    fn a_peer_that_hangs_costs_the_bound_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let silent = folder.path().join("silent");
        peer(&silent, vec![], true);
        // Nobody ever accepts, and the backlog is full.
        let full = folder.path().join("full");
        let _listener = UnixListener::bind(&full).unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = dial(&full, Instant::now() + Duration::from_millis(30)) {
            held.push(stream);
        }
        for path in [silent, full] {
            let begin = Instant::now();
            let mut client = Client::new(&path, begin + Duration::from_millis(200), 20);
            assert!(matches!(client.get("/x"), Err(Error::Late)));
            assert!(begin.elapsed() < Duration::from_secs(2));
        }
    }
}
