//! The compressions that a server may switch to: bytes as they came in, bytes of the stream out. Pure.

use std::io::{self, Read};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BufMut as _, BytesMut};
use zstd::stream::raw::{Decoder as Zstd, Operation as _};

/// What a hello offers.
pub const OFFERED: [&str; 2] = ["snappy", "zstd"];
const STEP: usize = 16 << 10;
/// In front of a chunk of snappy's frame format: its type, and three bytes of length.
const CHUNK_HEAD: usize = 4;

pub enum Inflate {
    Plain,
    Snappy(Box<snap::read::FrameDecoder<Chunks>>),
    /// Whether a frame has begun that is not at its end.
    Zstd(Box<Zstd<'static>>, bool),
}

/// Whole chunks only: at their end the decoder stands between two.
#[derive(Default)]
pub struct Chunks(BytesMut);

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.0.len());
        self.0.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

impl Inflate {
    pub fn new(compression: &str) -> Result<Self> {
        Ok(match compression {
            "" => Inflate::Plain,
            "snappy" => Inflate::Snappy(Box::new(snap::read::FrameDecoder::new(Chunks::default()))),
            "zstd" => Inflate::Zstd(Box::new(Zstd::new().context("starting zstd")?), false),
            other => bail!("the server switches to the compression {other:?}, which was not offered"),
        })
    }

    /// Moves what can be read of `received` to `stream`.
    pub fn read(&mut self, received: &mut BytesMut, stream: &mut BytesMut) -> Result<()> {
        match self {
            Inflate::Plain => {
                stream.unsplit(received.split());
                Ok(())
            }
            Inflate::Snappy(decoder) => {
                let mut whole = 0;
                while let Some([_, length @ ..]) = received.get(whole..whole + CHUNK_HEAD) {
                    let length = length.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                    if received.len() < whole + CHUNK_HEAD + length {
                        break;
                    }
                    whole += CHUNK_HEAD + length;
                }
                decoder.get_mut().0.extend_from_slice(&received.split_to(whole));
                let mut part = [0; STEP];
                loop {
                    let count = decoder.read(&mut part).context("what should be snappy is not")?;
                    if count == 0 {
                        return Ok(());
                    }
                    stream.put_slice(&part[..count]);
                }
            }
            Inflate::Zstd(decoder, within) => {
                let mut part = [0; STEP];
                loop {
                    let status =
                        decoder.run_on_buffers(received, &mut part).context("what should be zstd is not")?;
                    received.advance(status.bytes_read);
                    stream.put_slice(&part[..status.bytes_written]);
                    if status.bytes_read == 0 && status.bytes_written == 0 {
                        return Ok(());
                    }
                    // 0: the frame has been read to its end, its checksum included.
                    *within = status.remaining > 0;
                }
            }
        }
    }

    /// Whether the compressed stream may end here.
    pub fn at_end(&self) -> bool {
        !matches!(self, Inflate::Zstd(_, true))
    }

    /// Nothing may be left when a server restarts the stream: it waits for the acknowledgement.
    pub fn ends_here(&self, received: &BytesMut, stream: &BytesMut) -> Result<()> {
        ensure!(
            received.is_empty() && stream.is_empty(),
            "the server sent {} bytes before its restart was acknowledged",
            received.len() + stream.len()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn text() -> Vec<u8> {
        (0..200_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
    }

    fn inflated(compression: &str, packed: &[u8], step: usize) -> Vec<u8> {
        let mut inflate = Inflate::new(compression).unwrap();
        let (mut received, mut stream) = (BytesMut::new(), BytesMut::new());
        for part in packed.chunks(step) {
            received.extend_from_slice(part);
            inflate.read(&mut received, &mut stream).unwrap();
        }
        assert!(inflate.at_end());
        inflate.ends_here(&received, &BytesMut::new()).unwrap();
        stream.to_vec()
    }

    #[test]
    fn compressed_bytes_come_out_as_they_went_in_however_they_arrive() {
        let mut snappy = snap::write::FrameEncoder::new(Vec::new());
        snappy.write_all(&text()).unwrap();
        let snappy = snappy.into_inner().unwrap();
        let zstd = zstd::encode_all(text().as_slice(), 1).unwrap();
        for (compression, packed) in [("snappy", snappy), ("zstd", zstd), ("", text())] {
            for step in [1, 1000, packed.len()] {
                assert!(inflated(compression, &packed, step) == text(), "{compression} {step}");
            }
        }
    }

    #[test]
    fn zstd_is_not_at_its_end_before_the_last_byte() {
        let packed = zstd::encode_all(&b"some text"[..], 1).unwrap();
        let mut inflate = Inflate::new("zstd").unwrap();
        let (mut received, mut stream) = (BytesMut::from(&packed[..packed.len() - 1]), BytesMut::new());
        inflate.read(&mut received, &mut stream).unwrap();
        assert!(!inflate.at_end());
        received.extend_from_slice(&packed[packed.len() - 1..]);
        inflate.read(&mut received, &mut stream).unwrap();
        assert!(inflate.at_end() && &stream[..] == b"some text");
    }

    #[test]
    fn what_is_no_compression_is_said() {
        assert!(Inflate::new("lz4").err().unwrap().to_string().contains("lz4"));
        for compression in OFFERED {
            let mut inflate = Inflate::new(compression).unwrap();
            let (mut received, mut stream) = (BytesMut::from(&[7; 4000][..]), BytesMut::new());
            received[..4].copy_from_slice(&[7, 4, 0, 0]);
            let error = inflate.read(&mut received, &mut stream).unwrap_err();
            assert!(error.to_string().contains(compression), "{error}");
        }
    }
}
