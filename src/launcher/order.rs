//! Checks what the server sends, as if the server had been taken over.
//!
//! Most rules are in the types already: a [`crate::code::Digest`] is 32 bytes and never a path, [`crate::function::Memory`]
//! is refused out of its range while it is being decoded. Here are the rest.

use std::os::fd::OwnedFd;

use crate::sys::packet::Packet;
use crate::wire::launcher::{MAX_LAYERS, Order, OrderId};
use crate::wire::{self, WireError};

/// An order whose form is right, with the descriptor that it may have.
#[derive(Debug)]
pub struct Checked {
    pub order: Order,
    /// Exactly one for [`Order::AdoptCode`], none for all others.
    pub zip: Option<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Unreadable(#[from] WireError),
    #[error("{found} descriptors came along, {wanted} are expected")]
    Descriptors { found: usize, wanted: usize },
    #[error("{0} layers: at most {MAX_LAYERS} are allowed")]
    TooManyLayers(usize),
    #[error("a layer is named twice")]
    LayerTwice,
}

/// The order; or whose it was, as far as that can be told, and what is wrong with it.
pub fn check(packet: Packet) -> Result<Checked, (OrderId, OrderError)> {
    let order: Order = wire::decode(&packet.bytes).map_err(|error| (OrderId::UNREADABLE, error.into()))?;
    let wanted = usize::from(matches!(order, Order::AdoptCode { .. }));
    let found = packet.descriptors.len();
    if found != wanted {
        return Err((id(&order), OrderError::Descriptors { found, wanted }));
    }
    if let Order::Build(build) = &order {
        let layers = &build.layers;
        if layers.len() > MAX_LAYERS {
            return Err((build.order, OrderError::TooManyLayers(layers.len())));
        }
        if layers.iter().enumerate().any(|(i, layer)| layers[..i].contains(layer)) {
            return Err((build.order, OrderError::LayerTwice));
        }
    }
    Ok(Checked { order, zip: packet.descriptors.into_iter().next() })
}

pub fn id(order: &Order) -> OrderId {
    match order {
        Order::Build(build) => build.order,
        Order::Enter(enter) => enter.order,
        Order::AdoptCode { order, .. }
        | Order::ForgetCode { order, .. }
        | Order::End { order, .. }
        | Order::Describe { order, .. } => *order,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Digest;
    use crate::function::{Memory, TmpSize};
    use crate::runtime::TreeId;
    use crate::wire::launcher::Build;

    fn build(layers: usize) -> Order {
        Order::Build(Build {
            order: OrderId(7),
            tree: TreeId(Digest::of(b"tree")),
            code: Digest::of(b"code"),
            layers: (0..layers).map(|i| Digest::of(&[i as u8])).collect(),
            memory: Memory::from_mib(128).unwrap(),
            tmp: TmpSize::DEFAULT,
        })
    }

    fn packet(order: &Order, descriptors: usize) -> Packet {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        Packet { bytes: wire::encode(order).unwrap(), descriptors: (0..descriptors).map(|_| null()).collect() }
    }

    #[test]
    fn five_layers_are_allowed_and_six_are_not() {
        assert!(check(packet(&build(5), 0)).is_ok());
        assert!(matches!(check(packet(&build(6), 0)), Err((OrderId(7), OrderError::TooManyLayers(6)))));
    }

    #[test]
    fn a_descriptor_that_nobody_asked_for_is_refused() {
        assert!(matches!(check(packet(&build(0), 1)), Err((OrderId(7), OrderError::Descriptors { found: 1, wanted: 0 }))));
    }

    #[test]
    fn bytes_that_are_no_order_have_no_id() {
        let garbage = Packet { bytes: vec![0xff; 100], descriptors: Vec::new() };
        assert!(matches!(check(garbage), Err((OrderId::UNREADABLE, OrderError::Unreadable(_)))));
        let mut behind = packet(&build(0), 0);
        behind.bytes.push(0);
        assert!(check(behind).is_err());
    }
}
