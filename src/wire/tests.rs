//! Whatever is said arrives as it was said, and whatever else arrives is refused.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::launcher::{
    Build, CgroupLayout, CgroupPath, ContainerId, Description, Enter, Handle, MappedId, Mounted, Namespace, Order, OrderId,
    Report, StagingId, StepFailure, StepTime, TerminalSize, Usage,
};
use super::supervisor::{ToServer, ToSupervisor, Unpacked, ZipRefusal};
use super::*;
use crate::code::Digest;
use crate::config::Config;
use crate::function::{Memory, TmpSize};
use crate::invocation::ProcessEnd;
use crate::runtime::TreeId;

fn id() -> impl Strategy<Value = OrderId> {
    any::<u64>().prop_map(OrderId)
}

fn staging() -> impl Strategy<Value = StagingId> {
    any::<u128>().prop_map(StagingId)
}

fn container() -> impl Strategy<Value = ContainerId> {
    any::<(u32, u32)>().prop_map(|(launcher, number)| ContainerId { launcher, number })
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 8]>().prop_map(|bytes| Digest::of(&bytes))
}

fn build() -> impl Strategy<Value = Build> {
    let memory = (Memory::MIN..=Memory::MAX).prop_map(|mib| Memory::from_mib(mib).unwrap());
    let tmp = (512..=10240u32).prop_map(|mib| TmpSize::from_mib(mib).unwrap());
    (id(), digest(), digest(), vec(digest(), 0..5), memory, tmp).prop_map(|(order, tree, code, layers, memory, tmp)| Build {
        order,
        tree: TreeId(tree),
        code,
        layers,
        memory,
        tmp,
    })
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        build().prop_map(Order::Build),
        (id(), staging(), digest()).prop_map(|(order, staging, code)| Order::AdoptCode { order, staging, code }),
        (id(), digest()).prop_map(|(order, code)| Order::ForgetCode { order, code }),
        (id(), container()).prop_map(|(order, container)| Order::End { order, container }),
        (id(), container()).prop_map(|(order, container)| Order::Describe { order, container }),
        (id(), container(), any::<bool>(), proptest::option::of(any::<(u16, u16)>())).prop_map(
            |(order, container, root, size)| {
                let terminal = size.map(|(rows, columns)| TerminalSize { rows, columns });
                Order::Enter(Enter { order, container, root, terminal })
            }
        ),
    ]
}

fn description() -> impl Strategy<Value = Description> {
    let namespace = (".{0,9}", any::<u64>()).prop_map(|(kind, inode)| Namespace { kind, inode });
    let id = any::<(u32, u32, u32)>();
    let id = id.prop_map(|(uid_inside, gid_inside, outside)| MappedId { uid_inside, gid_inside, outside });
    let group = (".{0,9}", ".{0,99}").prop_map(|(hierarchy, path)| CgroupPath { hierarchy, path });
    let mounted = [".{0,9}", ".{0,9}", ".{0,99}", ".{0,40}"];
    let mounted = mounted.prop_map(|[at, kind, what, options]| Mounted { at, kind, what, options });
    let usage = (any::<bool>(), any::<Option<u64>>(), any::<Option<u64>>(), any::<u32>())
        .prop_map(|(frozen, memory, cpu_us, processes)| Usage { frozen, memory, cpu_us, processes, ..Usage::default() });
    (any::<u32>(), vec(namespace, 0..9), vec(id, 0..3), vec(group, 0..6), vec(mounted, 0..8), usage)
        .prop_map(|(init, namespaces, ids, cgroups, mounts, usage)| Description { init, namespaces, ids, cgroups, mounts, usage })
}

fn how() -> impl Strategy<Value = ProcessEnd> {
    prop_oneof![
        any::<i32>().prop_map(ProcessEnd::Exited),
        any::<(i32, bool)>().prop_map(|(signal, core)| ProcessEnd::Killed { signal, core }),
    ]
}

fn report() -> impl Strategy<Value = Report> {
    let layout = prop_oneof![Just(CgroupLayout::Unified), Just(CgroupLayout::Split)];
    let handle = prop_oneof![Just(Handle::InitPidfd), Just(Handle::Tmp), Just(Handle::MemoryDir)];
    let step = (".{0,20}", any::<u32>()).prop_map(|(step, micros)| StepTime { step, micros });
    let failure = (".{0,20}", ".{0,200}", any::<i32>()).prop_map(|(step, what, errno)| StepFailure { step, what, errno });
    prop_oneof![
        (id(), container(), layout, vec(handle, 0..12), vec(step, 0..30))
            .prop_map(|(order, container, cgroups, handles, steps)| Report::Built { order, container, cgroups, handles, steps }),
        id().prop_map(|order| Report::Adopted { order }),
        id().prop_map(|order| Report::Forgotten { order }),
        (id(), description()).prop_map(|(order, description)| Report::Described { order, description: Box::new(description) }),
        id().prop_map(|order| Report::Entered { order, handles: vec![Handle::Control, Handle::CgroupKill, Handle::Terminal] }),
        (id(), container()).prop_map(|(order, container)| Report::Ended { order, container }),
        (id(), ".{0,200}").prop_map(|(order, why)| Report::Refused { order, why }),
        (id(), failure).prop_map(|(order, failure)| Report::Failed { order, failure }),
        (container(), how()).prop_map(|(container, how)| Report::InitEnded { container, how }),
    ]
}

fn to_supervisor() -> impl Strategy<Value = ToSupervisor> {
    prop_oneof![
        Just(ToSupervisor::Ready),
        Just(ToSupervisor::Heartbeat),
        Just(ToSupervisor::Reloaded),
        (id(), staging()).prop_map(|(order, staging)| ToSupervisor::Unpack { order, staging }),
    ]
}

fn to_server() -> impl Strategy<Value = ToServer> {
    let result = prop_oneof![
        any::<u64>().prop_map(|bytes| Unpacked::Done { bytes }),
        (0..ZipRefusal::ALL.len()).prop_map(|place| Unpacked::Refused(ZipRefusal::ALL[place])),
        ".{0,200}".prop_map(|what| Unpacked::Failed { what }),
    ];
    prop_oneof![
        any::<u32>().prop_map(|launcher| ToServer::Launcher { launcher }),
        any::<u32>().prop_map(|launcher| ToServer::LauncherGone { launcher }),
        (id(), result).prop_map(|(order, result)| ToServer::Unpacked { order, result }),
        (any::<u64>(), vec(".*", 0..4)).prop_map(|(idle_max_s, waiting)| {
            let config = Config { idle_max_s, ..Config::default() };
            ToServer::Reload { config: Box::new(config), waiting }
        }),
        Just(ToServer::Drain),
    ]
}

/// There and back; and neither one byte fewer nor one more is the same message, or any.
fn arrives<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: &M) -> Result<(), TestCaseError> {
    let bytes = encode(message).unwrap();
    prop_assert_eq!(&decode::<M>(&bytes).unwrap(), message);
    for end in 0..bytes.len() {
        prop_assert!(decode::<M>(&bytes[..end]).is_err(), "cut at {} of {}", end, bytes.len());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    prop_assert!(matches!(decode::<M>(&longer), Err(WireError::Trailing(1))));
    Ok(())
}

/// What can be read from bytes of somebody's choice is within its bounds, and goes back as it is.
fn is_refused_or_whole<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = decode::<M>(bytes) {
        prop_assert_eq!(decode::<M>(&encode(&message).unwrap()).unwrap(), message);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_arrives(order in order(), report in report(), up in to_supervisor(), down in to_server()) {
        arrives(&order)?;
        arrives(&report)?;
        arrives(&up)?;
        arrives(&down)?;
    }

    #[test]
    fn garbage_is_refused_or_a_whole_message(bytes in vec(any::<u8>(), 0..300)) {
        is_refused_or_whole::<Order>(&bytes)?;
        is_refused_or_whole::<Report>(&bytes)?;
        is_refused_or_whole::<ToSupervisor>(&bytes)?;
        is_refused_or_whole::<ToServer>(&bytes)?;
    }

    /// Nearer to the truth than garbage: a good order with some bytes changed. Its memory is still one that Lambda has.
    #[test]
    fn a_spoilt_order_is_refused_or_within_bounds(build in build(), spoil in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = encode(&Order::Build(build)).unwrap();
        for (at, byte) in spoil {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(Order::Build(read)) = decode(&bytes) {
            prop_assert!((Memory::MIN..=Memory::MAX).contains(&read.memory.mib()));
            prop_assert!((512..=10240).contains(&read.tmp.mib()));
        }
    }
}

#[test]
fn a_message_that_is_too_long_is_not_sent() {
    let refused = |length| encode(&Report::Refused { order: OrderId(1), why: "x".repeat(length) });
    assert!(refused(MAX_MESSAGE - 10).is_ok());
    assert!(matches!(refused(MAX_MESSAGE), Err(WireError::TooLong(_))));
}
