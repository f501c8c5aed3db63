//! Packets with descriptors over SOCK_SEQPACKET: unix(7), cmsg(3).
//!
//! Every socket pair between processes of ours is read and written here. A packet that was cut
//! (MSG_TRUNC) or that lost descriptors (MSG_CTRUNC: near RLIMIT_NOFILE the kernel drops them silently) is an error.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::wire::{MAX_DESCRIPTORS, MAX_MESSAGE};

/// One packet as received.
#[derive(Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

/// A connected pair, both ends close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one packet. `WouldBlock` only on a non-blocking socket whose peer is slow.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

/// Receives one packet; `None` when the peer has closed its end.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    // Room for one descriptor more than is allowed, so that one too many is seen rather than cut.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // Taken out of a packet that was cut, too: they are ours to close.
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a packet over 64 KiB, or one that carries or lost too many descriptors",
        ));
    }
    if message.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    bytes.truncate(message.bytes);
    Ok(Some(Packet { bytes, descriptors }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors() {
        let (a, b) = pair().unwrap();
        let extra = pair().unwrap();
        send(a.as_fd(), b"hello", &[extra.0.as_fd(), extra.1.as_fd()]).unwrap();
        let packet = receive(b.as_fd()).unwrap().unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"hello"[..], 2));
    }

    #[test]
    fn seventeen_descriptors_are_refused_on_both_sides_and_so_are_more_than_there_is_room_for() {
        for count in [17, 100] {
            let (a, b) = pair().unwrap();
            let (pipe, end) = nix::unistd::pipe().unwrap();
            let many = vec![end.as_fd(); count];
            assert!(send(a.as_fd(), b"x", &many).is_err());
            let raw: Vec<RawFd> = many.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&raw)];
            sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
            assert_eq!(receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData, "{count}");
            drop(end);
            let mut looked = [nix::poll::PollFd::new(pipe.as_fd(), nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut looked, nix::poll::PollTimeout::ZERO).unwrap(), 1, "none of {count} is left open");
        }
    }

    #[test]
    fn a_packet_of_65_kib_is_refused() {
        let (a, b) = pair().unwrap();
        let long = vec![1; (64 << 10) + 1];
        sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(&long)], &[], MsgFlags::empty(), None).unwrap();
        assert_eq!(receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_closed_peer_is_none() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert!(receive(b.as_fd()).unwrap().is_none());
    }
}
