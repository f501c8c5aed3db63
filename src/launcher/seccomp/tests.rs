//! The compiler against seccompiler's, as verdicts: a small interpreter of classic BPF runs both programs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    sock_filter,
};

use super::*;

const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// What the kernel shows to a filter.
#[derive(Clone, Copy, Debug)]
struct Seen {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

impl Seen {
    fn native(number: u32, arguments: [u64; 6]) -> Self {
        Self { number, architecture: AUDIT_ARCH_X86_64, arguments }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.architecture,
            16..=60 if offset % 8 == 0 => self.arguments[(offset as usize - 16) / 8] as u32,
            16..=60 if offset % 8 == 4 => (self.arguments[(offset as usize - 16) / 8] >> 32) as u32,
            _ => panic!("a load at {offset}"),
        }
    }
}

/// Runs a program as the kernel would; panics where the kernel's checker would refuse it.
fn run(program: &[Instruction], seen: &Seen) -> u32 {
    let (mut at, mut loaded) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        match code {
            0x20 => loaded = seen.word(k),
            0x05 => at += k as usize,
            0x15 => at += jump(loaded == k),
            0x25 => at += jump(loaded > k),
            0x35 => at += jump(loaded >= k),
            0x45 => at += jump(loaded & k != 0),
            0x54 => loaded &= k,
            0x06 => return k,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

fn plain(program: &BpfProgram) -> Vec<Instruction> {
    program.iter().map(|&sock_filter { code, jt, jf, k }| Instruction { code, jt, jf, k }).collect()
}

fn seccompilers(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Vec<Instruction> {
    let refuse = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64).unwrap();
    plain(&BpfProgram::try_from(filter).unwrap())
}

/// The table again, in seccompiler's words.
fn table_by_seccompiler() -> Vec<Instruction> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = table::allowed().map(|call| (i64::from(call.number), Vec::new())).collect();
    for condition in CONDITIONS {
        let alternatives: Vec<SeccompRule> = condition.any.iter().flat_map(|tests| products(tests)).collect();
        if !alternatives.is_empty() {
            rules.insert(condition.call.number.into(), alternatives);
        }
    }
    seccompilers(rules)
}

/// A rule of seccompiler is a conjunction: "one of" becomes a rule for each value.
fn products(tests: &[Test]) -> Vec<SeccompRule> {
    let compare = |argument: u32, how: SeccompCmpOp, value: u32| {
        SeccompCondition::new(argument as u8, SeccompCmpArgLen::Dword, how, value.into()).unwrap()
    };
    let mut rules: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
    for Test(argument, expected) in tests {
        let choices: Vec<Vec<SeccompCondition>> = match expected {
            Arg::OneOf(values) => values.iter().map(|&value| vec![compare(*argument, SeccompCmpOp::Eq, value)]).collect(),
            Arg::NoneOf(values) => vec![values.iter().map(|&value| compare(*argument, SeccompCmpOp::Ne, value)).collect()],
            Arg::WithoutBits(mask) => vec![vec![compare(*argument, SeccompCmpOp::MaskedEq((*mask).into()), 0)]],
        };
        rules = rules.iter().flat_map(|rule| choices.iter().map(move |more| [rule.clone(), more.clone()].concat())).collect();
    }
    rules.into_iter().map(|rule| SeccompRule::new(rule).unwrap()).collect()
}

/// What the table says, read by hand.
fn expected(seen: &Seen) -> u32 {
    if seen.architecture != AUDIT_ARCH_X86_64 || seen.number >= X32_BIT {
        return ENOSYS;
    }
    if table::allowed().any(|call| call.number == seen.number) {
        return ALLOW;
    }
    let Some(condition) = CONDITIONS.iter().find(|condition| condition.call.number == seen.number) else { return ENOSYS };
    let holds = |Test(argument, expected): &Test| {
        let value = seen.arguments[*argument as usize] as u32;
        match expected {
            Arg::OneOf(values) => values.contains(&value),
            Arg::NoneOf(values) => !values.contains(&value),
            Arg::WithoutBits(mask) => value & mask == 0,
        }
    };
    if condition.any.iter().any(|tests| tests.iter().all(holds)) { ALLOW } else { refusal(condition.otherwise) }
}

/// Every value that a condition names and its neighbours, with and without garbage in the upper half; and any other.
fn argument() -> impl Strategy<Value = u64> {
    let named: Vec<u32> = CONDITIONS
        .iter()
        .flat_map(|condition| condition.any.iter().copied().flatten())
        .flat_map(|Test(_, expected)| match expected {
            Arg::OneOf(values) | Arg::NoneOf(values) => values.to_vec(),
            Arg::WithoutBits(mask) => (0..32).map(|bit| mask & (1 << bit)).collect(),
        })
        .flat_map(|value| [value.wrapping_sub(1), value, value.wrapping_add(1)])
        .collect();
    let low = prop_oneof![4 => proptest::sample::select(named), 1 => any::<u32>()];
    (low, prop_oneof![Just(0), Just(u32::MAX), any::<u32>()]).prop_map(|(low, high)| u64::from(high) << 32 | u64::from(low))
}

fn number() -> impl Strategy<Value = u32> {
    let conditional: Vec<u32> = CONDITIONS.iter().map(|condition| condition.call.number).collect();
    prop_oneof![4 => 0..480u32, 4 => proptest::sample::select(conditional), 1 => any::<u32>(), 1 => (0..600u32).prop_map(|n| n | X32_BIT)]
}

fn seen() -> impl Strategy<Value = Seen> {
    let architecture = prop_oneof![8 => Just(AUDIT_ARCH_X86_64), 1 => Just(I386), 1 => Just(AARCH64), 1 => any::<u32>()];
    (number(), architecture, proptest::array::uniform6(argument())).prop_map(|(number, architecture, arguments)| Seen {
        number,
        architecture,
        arguments,
    })
}

/// Our program for a set of allowed numbers.
fn compiled(allowed: &BTreeSet<u32>) -> Vec<Instruction> {
    let mut program = Program::default();
    let allow = program.answer(ALLOW);
    let refuse = program.answer(ENOSYS);
    let special: Vec<(u32, Place)> = allowed.iter().map(|&number| (number, allow)).collect();
    let tree = program.choose(&special, refuse);
    program.load(NUMBER, tree);
    program.finish()
}

/// As the kernel's checker (`bpf_check_classic`): every jump lands inside, every path ends in a return.
fn assert_well_formed(program: &[Instruction]) {
    assert!(program.len() <= 4096, "{} instructions", program.len());
    for (at, instruction) in program.iter().enumerate() {
        let farthest = match instruction.code {
            0x06 => continue,
            0x05 => at + 1 + instruction.k as usize,
            0x15 | 0x35 | 0x45 => at + 1 + usize::from(instruction.jt.max(instruction.jf)),
            _ => at + 1,
        };
        assert!(farthest < program.len(), "instruction {at} leads to {farthest} of {}", program.len());
    }
}

/// The longest walk from the first instruction, without the arguments' part.
fn longest_walk(program: &[Instruction]) -> usize {
    (0..480).map(|number| steps(program, &Seen::native(number, [0; 6]))).max().unwrap_or(0)
}

fn steps(program: &[Instruction], seen: &Seen) -> usize {
    // Cutting the program where it answers: the number of prefixes that do not yet hold the answer.
    let mut at = 0;
    let mut count = 0;
    let mut loaded = 0;
    while program[at].code != 0x06 {
        let Instruction { code, jt, jf, k } = program[at];
        count += 1;
        at += 1;
        match code {
            0x20 => loaded = seen.word(k),
            0x05 => at += k as usize,
            0x15 => at += usize::from(if loaded == k { jt } else { jf }),
            0x35 => at += usize::from(if loaded >= k { jt } else { jf }),
            _ => at += usize::from(if loaded & k != 0 { jt } else { jf }),
        }
    }
    count
}

#[test]
fn the_filter_is_short_and_well_formed() {
    let program = filter();
    assert_well_formed(&program);
    let walk = longest_walk(&program);
    println!("{} instructions, longest walk {walk}", program.len());
    assert!(program.len() <= 150, "{} instructions: installing costs time at each launch", program.len());
    assert!(walk <= 30, "a walk of {walk}: the kernel takes it for each of a thousand numbers");
}

#[test]
fn every_number_gets_what_the_table_says() {
    let program = filter();
    for number in (0..1024).chain(X32_BIT..X32_BIT + 1024).chain([u32::MAX]) {
        for arguments in [[0; 6], [u64::MAX; 6]] {
            let native = Seen::native(number, arguments);
            assert_eq!(run(&program, &native), expected(&native), "{native:?}");
            let foreign = Seen { architecture: I386, ..native };
            assert_eq!(run(&program, &foreign), ENOSYS, "{foreign:?}");
        }
    }
}

#[test]
fn what_the_issue_forbids_is_refused() {
    let program = filter();
    let verdict = |number: i64, arguments: [u64; 6]| run(&program, &Seen::native(number as u32, arguments));
    for refused in [
        libc::SYS_keyctl,
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_ptrace,
        libc::SYS_open_by_handle_at,
        libc::SYS_clone3,
        libc::SYS_kexec_load,
    ] {
        assert_eq!(verdict(refused, [0; 6]), ENOSYS, "{refused}");
    }
    let eperm = refusal(libc::EPERM);
    for namespace in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ] {
        let flags = (namespace | libc::CLONE_VM | libc::SIGCHLD) as u64;
        assert_eq!(verdict(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]), eperm, "{namespace:#x}");
    }
    assert_eq!(verdict(libc::SYS_clone, [libc::CLONE_THREAD as u64, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0]), eperm);
    // TIOCSTI in the low half is TIOCSTI to the kernel, whatever the upper half says (CVE-2019-10063).
    assert_eq!(verdict(libc::SYS_ioctl, [0, 1 << 40 | libc::TIOCSTI, 0, 0, 0, 0]), eperm);
    // br_ioctl_call() and the VLAN hook load `bridge` and `8021q` before they ask for any capability.
    for module in [0x8940, 0x8982, 0x89a0] {
        assert_eq!(verdict(libc::SYS_ioctl, [0, module, 0, 0, 0, 0]), eperm, "{module:#x}");
    }
    assert_eq!(verdict(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, 0, 0, 0, 0, 0]), refusal(libc::EINVAL));
    assert_eq!(verdict(libc::SYS_prctl, [libc::PR_SET_SECCOMP as u64, 2, 0, 0, 0, 0]), refusal(libc::EINVAL));
    let family = refusal(libc::EAFNOSUPPORT);
    assert_eq!(verdict(libc::SYS_socket, [libc::AF_VSOCK as u64, 1, 0, 0, 0, 0]), family);
    assert_eq!(verdict(libc::SYS_socket, [libc::AF_INET as u64, 1, libc::IPPROTO_SCTP as u64, 0, 0, 0]), family);
    for domain in [libc::AF_INET, libc::AF_INET6] {
        // SOCK_DCCP, with and without SOCK_CLOEXEC: protocol 0 is DCCP.
        for kind in [6, 6 | libc::SOCK_CLOEXEC as u64] {
            assert_eq!(verdict(libc::SYS_socket, [domain as u64, kind, 0, 0, 0, 0]), family);
        }
        let stream = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
        assert_eq!(verdict(libc::SYS_socket, [domain as u64, stream, 0, 0, 0, 0]), ALLOW);
    }
    assert_eq!(verdict(libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_SEQPACKET as u64, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, libc::NETLINK_NETFILTER as u64, 0, 0, 0]), family);
    assert_eq!(verdict(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0, 0, 0, 0]), ALLOW);
    // Of who owns the shared trees (root inside), and 6.19's of directories.
    for lease in [libc::F_SETLEASE as u64, 1040] {
        assert_eq!(verdict(libc::SYS_fcntl, [3, lease, libc::F_WRLCK as u64, 0, 0, 0]), refusal(libc::EACCES));
    }
    for common in [libc::F_SETFL, libc::F_SETLK, libc::F_OFD_SETLKW, libc::F_DUPFD_CLOEXEC, libc::F_ADD_SEALS] {
        assert_eq!(verdict(libc::SYS_fcntl, [3, common as u64, 0, 0, 0, 0]), ALLOW);
    }
    let (map, huge) = ((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64, libc::MAP_HUGETLB as u64);
    assert_eq!(verdict(libc::SYS_mmap, [0, 4096, 3, map, u64::MAX, 0]), ALLOW);
    assert_eq!(verdict(libc::SYS_mmap, [0, 4096, 3, map | huge, u64::MAX, 0]), refusal(libc::ENOMEM));
    assert_eq!(verdict(libc::SYS_memfd_create, [0, libc::MFD_HUGETLB.into(), 0, 0, 0, 0]), refusal(libc::EINVAL));
    assert_eq!(verdict(libc::SYS_personality, [0x0400_0000, 0, 0, 0, 0, 0]), eperm);
}

#[test]
fn jumps_over_more_than_255_instructions_go_by_stepping_stones() {
    // 600 lone values in turn for four conditions far away: every kind of stone is needed.
    let mut program = Program::default();
    let answers: Vec<Place> = (0..4).map(|errno| program.answer(refusal(errno))).collect();
    let checks: Vec<Place> = answers
        .iter()
        .map(|&answer| {
            let tested = program.if_any_bit(1, answer, answers[0]);
            program.load(ARGUMENTS, tested)
        })
        .collect();
    let special: Vec<(u32, Place)> = (0..600).map(|i| (2 * i, checks[i as usize % 4])).collect();
    let tree = program.choose(&special, answers[1]);
    program.load(NUMBER, tree);
    let program = program.finish();
    assert_well_formed(&program);
    assert!(program.len() > 600);
    for i in 0..600u32 {
        let odd = Seen::native(2 * i, [1, 0, 0, 0, 0, 0]);
        assert_eq!(run(&program, &odd), refusal(i as i32 % 4), "{i}");
        assert_eq!(run(&program, &Seen::native(2 * i, [0; 6])), refusal(0), "{i}");
        assert_eq!(run(&program, &Seen::native(2 * i + 1, [1; 6])), refusal(1), "{i}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_filter_says_what_seccompiler_says(seen in seen()) {
        thread_local! {
            static BOTH: (Vec<Instruction>, Vec<Instruction>) = (filter(), table_by_seccompiler());
        }
        let (ours, theirs) = BOTH.with(|(ours, theirs)| (run(ours, &seen), run(theirs, &seen)));
        prop_assert_eq!(ours, expected(&seen));
        // seccompiler kills a foreign architecture and has one errno; whether a call is allowed must agree.
        prop_assert_eq!(ours == ALLOW, theirs == ALLOW);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_set_of_numbers_compiles_to_its_verdicts(
        // seccompiler takes five instructions for each number, and a program holds 4096.
        ranges in proptest::collection::vec((0..1500u32, 1..12u32), 0..40),
        lone in proptest::collection::btree_set(0..1500u32, 0..250),
    ) {
        let allowed: BTreeSet<u32> = ranges.iter().flat_map(|&(from, length)| from..from + length).chain(lone).collect();
        let ours = compiled(&allowed);
        assert_well_formed(&ours);
        let theirs = seccompilers(allowed.iter().map(|&number| (number.into(), Vec::new())).collect());
        let borders = allowed.iter().flat_map(|&number| [number.wrapping_sub(1), number, number + 1]);
        for number in borders.chain([0, 5000, u32::MAX]) {
            let seen = Seen::native(number, [0; 6]);
            prop_assert_eq!(run(&ours, &seen), run(&theirs, &seen), "{}", number);
        }
        // Two comparisons for each run of numbers at the most, and their answers.
        let runs = allowed.iter().filter(|&&number| !allowed.contains(&(number + 1))).count();
        prop_assert!(ours.len() <= 2 * runs + 8 + ours.len() / 64, "{} instructions for {} runs", ours.len(), runs);
    }
}
