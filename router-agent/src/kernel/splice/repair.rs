//! A TCP sender that repeats itself, for the self-test: `TCP_REPAIR` (Linux 3.5, `CAP_NET_ADMIN`) is made for moving
//! connections between hosts, and lets one side be replaced by a socket whose sequence number is a little in the past.
//! What that sends first overlaps what the peer has, as a retransmit in other cuts does.

use std::{io, net::TcpStream, os::fd::AsFd};

use socket2::{Domain, Socket, Type};

use crate::kernel::sys::{get_socket_option, set_socket_option};

const TCP_QUEUE_SEQ: libc::c_int = 21;
const RECEIVE_QUEUE: u32 = 1;
const SEND_QUEUE: u32 = 2;
const REPAIR_ON: i32 = 1;
/// Without the window probe that ends a repair otherwise: the peer would discard it, and its answer we.
const REPAIR_OFF_NO_PROBE: i32 = -1;
/// `struct tcp_repair_window`: five `u32`s.
const WINDOW_BYTES: usize = 20;
/// The most that `TCP_MAXSEG` takes.
const SEGMENT_BYTES: u32 = 32767;

/// Replaces `sender`, whose peer has everything that it sent, by a socket that stands `bytes` before its end. The peer
/// does not notice. What is sent next goes into one segment, up to 32,767 bytes.
pub(super) fn step_back(sender: TcpStream, bytes: u32) -> io::Result<TcpStream> {
    let (local, peer) = (sender.local_addr()?, sender.peer_addr()?);
    repair(&sender, REPAIR_ON)?;
    let sent = sequence(&sender, SEND_QUEUE)?;
    let received = sequence(&sender, RECEIVE_QUEUE)?;
    let mut window = [0; WINDOW_BYTES];
    get_socket_option(&sender, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &mut window)?;
    drop(sender); // silently, because it is under repair

    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, None)?;
    repair(&socket, REPAIR_ON)?;
    // One segment: the peer drops those that are old altogether, and answers what the new socket does not understand.
    socket.set_tcp_mss(SEGMENT_BYTES)?;
    socket.bind(&local.into())?; // while another socket, the listener, is there: under repair that is allowed
    set_sequence(&socket, SEND_QUEUE, sent.wrapping_sub(bytes))?;
    set_sequence(&socket, RECEIVE_QUEUE, received)?;
    socket.connect(&peer.into())?; // connected at once, without a word on the wire
    set_socket_option(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &window)?;
    repair(&socket, REPAIR_OFF_NO_PROBE)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn repair(socket: &impl AsFd, mode: i32) -> io::Result<()> {
    set_socket_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &mode.to_ne_bytes())
}

fn choose(socket: &impl AsFd, queue: u32) -> io::Result<()> {
    set_socket_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &queue.to_ne_bytes())
}

fn sequence(socket: &impl AsFd, queue: u32) -> io::Result<u32> {
    choose(socket, queue)?;
    let mut bytes = [0; 4];
    get_socket_option(socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

fn set_sequence(socket: &impl AsFd, queue: u32, sequence: u32) -> io::Result<()> {
    choose(socket, queue)?;
    set_socket_option(socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence.to_ne_bytes())
}
