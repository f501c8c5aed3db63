//! Every message between our processes, as somebody might send it who has taken one of them over.
//!
//! The root side reads these bytes: an order goes through the launcher's check as well.

#![no_main]

use std::fmt::Debug;
use std::os::fd::OwnedFd;

use kiln::function::{Memory, TmpSize};
use kiln::launcher::order;
use kiln::sys::packet::Packet;
use kiln::wire::launcher::{MAX_LAYERS, Order, Report};
use kiln::wire::supervisor::{ToServer, ToSupervisor};
use kiln::wire::{self, MAX_MESSAGE};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What can be read goes back as it is; postcard's numbers have more than one form, so bytes need not be the same.
fn is_refused_or_whole<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let message: M = wire::decode(bytes).ok()?;
    let again = wire::encode(&message).expect("what came in one packet goes into one");
    assert!(again.len() <= bytes.len(), "grew from {} to {}", bytes.len(), again.len());
    assert_eq!(wire::decode::<M>(&again).expect("what was encoded can be read"), message);
    // One byte more is another message, or none.
    assert!(wire::decode::<M>(&[&again[..], &[0]].concat()).is_err());
    Some(message)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (descriptors, bytes) = input;
    if bytes.len() > MAX_MESSAGE {
        return;
    }
    is_refused_or_whole::<Report>(bytes);
    is_refused_or_whole::<ToSupervisor>(bytes);
    is_refused_or_whole::<ToServer>(bytes);
    let read = is_refused_or_whole::<Order>(bytes);

    let descriptors = usize::from(descriptors % 3);
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("open /dev/null"));
    let packet = Packet { bytes: bytes.to_vec(), descriptors: (0..descriptors).map(|_| null()).collect() };
    let Ok(checked) = order::check(packet) else { return };
    assert_eq!(Some(&checked.order), read.as_ref(), "the order that was checked is the one that was sent");
    assert_eq!(checked.zip.is_some(), matches!(checked.order, Order::AdoptCode { .. }), "a zip, for code and only for code");
    assert_eq!(usize::from(checked.zip.is_some()), descriptors);
    if let Order::Build(build) = &checked.order {
        assert!((Memory::MIN..=Memory::MAX).contains(&build.memory.mib()), "{:?}", build.memory);
        assert!(TmpSize::from_mib(build.tmp.mib()).is_ok(), "{:?}", build.tmp);
        assert!(build.layers.len() <= MAX_LAYERS);
        assert!(build.layers.iter().enumerate().all(|(i, layer)| !build.layers[..i].contains(layer)), "a layer twice");
    }
});
