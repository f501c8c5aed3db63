//! A plan as an OCI runtime configuration, for people: `kiln container inspect --oci`.
//!
//! Made from the plan that a launch executes; nothing is launched from it. Paths of the host are shown by the names that the
//! order has for them. The system call filter is left out: it is a table of its own, the same for all.

use nix::sys::resource::{RLIM_INFINITY, Resource};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Linux, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
    Mount as OciMount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder,
    Spec, SpecBuilder, UserBuilder,
};

use super::{Content, Mount, Plan, Rlimit};
use crate::launcher::cgroup::Limits;
use crate::launcher::identity::Mapped;
use crate::sys::mount::MountAttributes;

pub fn spec(plan: &Plan) -> Result<Spec, OciSpecError> {
    let mut builder = SpecBuilder::default()
        .version("1.2.0")
        .hostname(plan.host_name)
        .process(process(plan)?)
        .linux(linux(plan)?)
        .mounts(plan.mounts.iter().filter(|mount| mount.at != Mount::ROOT).map(mount).collect::<Result<Vec<_>, _>>()?);
    for mount in &plan.mounts {
        if let Content::Root(tree) = mount.content {
            let readonly = mount.attributes.contains(MountAttributes::READ_ONLY);
            builder = builder.root(RootBuilder::default().path(format!("trees/{tree}")).readonly(readonly).build()?);
        }
    }
    builder.build()
}

fn process(plan: &Plan) -> Result<Process, OciSpecError> {
    let none = Capabilities::new;
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(none())
        .effective(none())
        .inheritable(none())
        .permitted(none())
        .ambient(none())
        .build()?;
    ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(plan.uid).gid(plan.gid).build()?)
        .args(vec!["kiln-init".to_owned()])
        .env(Vec::new())
        .cwd("/var/task")
        .no_new_privileges(true)
        .capabilities(capabilities)
        .rlimits(plan.rlimits.iter().filter_map(rlimit).collect::<Result<Vec<_>, _>>()?)
        .build()
}

/// `None` for a resource that OCI has no word for.
fn rlimit(limit: &Rlimit) -> Option<Result<PosixRlimit, OciSpecError>> {
    let typ = match limit.resource {
        Resource::RLIMIT_NOFILE => PosixRlimitType::RlimitNofile,
        Resource::RLIMIT_STACK => PosixRlimitType::RlimitStack,
        Resource::RLIMIT_CORE => PosixRlimitType::RlimitCore,
        Resource::RLIMIT_MEMLOCK => PosixRlimitType::RlimitMemlock,
        Resource::RLIMIT_RTPRIO => PosixRlimitType::RlimitRtprio,
        Resource::RLIMIT_NICE => PosixRlimitType::RlimitNice,
        _ => return None,
    };
    let value = |limit: Option<u64>| limit.unwrap_or(RLIM_INFINITY);
    Some(PosixRlimitBuilder::default().typ(typ).soft(value(limit.soft)).hard(value(limit.hard)).build())
}

fn linux(plan: &Plan) -> Result<Linux, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};

    let namespaces = [User, Pid, Mount, Network, Ipc, Uts, Cgroup];
    let namespaces = namespaces.map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    LinuxBuilder::default()
        .namespaces(namespaces.into_iter().collect::<Result<Vec<_>, _>>()?)
        .uid_mappings(mappings(&plan.maps.uids)?)
        .gid_mappings(mappings(&plan.maps.gids)?)
        .cgroups_path(&plan.cgroup)
        .resources(resources(&plan.limits)?)
        .build()
}

fn mappings(map: &[Mapped]) -> Result<Vec<LinuxIdMapping>, OciSpecError> {
    let one = |one: &Mapped| LinuxIdMappingBuilder::default().container_id(one.inside).host_id(one.outside).size(1u32).build();
    map.iter().map(one).collect()
}

fn resources(limits: &Limits) -> Result<LinuxResources, OciSpecError> {
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let memory = signed(limits.memory_max);
    LinuxResourcesBuilder::default()
        // OCI counts memory and swap together, so the same number is no swap.
        .memory(LinuxMemoryBuilder::default().limit(memory).swap(memory).build()?)
        .pids(LinuxPidsBuilder::default().limit(limits.pids_max).build()?)
        .cpu(
            LinuxCpuBuilder::default()
                .shares(limits.cpu_shares)
                .period(micros(limits.cpu_period))
                .quota(signed(micros(limits.cpu_quota)))
                .burst(micros(limits.cpu_burst))
                .build()?,
        )
        .build()
}

/// As mount(8) spells them.
pub fn options(attributes: MountAttributes) -> Vec<String> {
    let all = [
        (MountAttributes::READ_ONLY, "ro"),
        (MountAttributes::NO_SUID, "nosuid"),
        (MountAttributes::NO_DEV, "nodev"),
        (MountAttributes::NO_EXEC, "noexec"),
    ];
    all.into_iter().filter(|(attribute, _)| attributes.contains(*attribute)).map(|(_, option)| option.to_owned()).collect()
}

fn mount(mount: &Mount) -> Result<OciMount, OciSpecError> {
    let mut options = options(mount.attributes);
    let (kind, source) = match &mount.content {
        Content::Root(tree) => ("overlay", format!("trees/{tree}")),
        Content::Devices => ("tmpfs", "devices".to_owned()),
        Content::Code(code) => ("bind", format!("code/{code}")),
        Content::Layers(layers) => {
            let lower: Vec<_> = layers.iter().rev().map(|layer| format!("code/{layer}")).collect();
            options.push(format!("lowerdir={}", lower.join(":")));
            ("overlay", "layers".to_owned())
        }
        Content::Tmp(size) => {
            let (bytes, inodes) = (size.bytes(), size.inodes());
            options.extend([format!("size={bytes}"), format!("nr_inodes={inodes}"), "mode=1777".to_owned()]);
            ("tmpfs", "tmpfs".to_owned())
        }
        Content::Processes => ("proc", "proc".to_owned()),
    };
    MountBuilder::default().destination(mount.at).typ(kind).source(source).options(options).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launcher::plan::tests::plan;

    #[test]
    fn every_part_of_the_plan_is_in_the_configuration() {
        let plan = plan(2);
        let spec = spec(&plan).unwrap();
        let (linux, process) = (spec.linux().as_ref().unwrap(), spec.process().as_ref().unwrap());
        assert_eq!((process.user().uid(), process.user().gid()), (plan.uid, plan.gid));
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.rlimits().as_ref().unwrap().len(), plan.rlimits.len());
        assert_eq!(linux.cgroups_path().as_ref().unwrap().to_str().unwrap(), plan.cgroup);
        let resources = linux.resources().as_ref().unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(plan.limits.memory_max as i64));
        assert_eq!(resources.pids().unwrap().limit(), i64::from(plan.limits.pids_max));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(plan.limits.cpu_quota.as_micros() as i64));
        for (found, mapped) in linux.uid_mappings().as_ref().unwrap().iter().zip(plan.maps.uids) {
            assert_eq!((found.container_id(), found.host_id()), (mapped.inside, mapped.outside));
        }
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!(mounts.len(), plan.mounts.len() - 1, "all but the root");
        for (found, planned) in mounts.iter().zip(&plan.mounts[1..]) {
            let options = found.options().as_ref().unwrap();
            assert_eq!(found.destination().to_str().unwrap(), planned.at);
            assert_eq!(options.contains(&"ro".to_owned()), planned.attributes.contains(MountAttributes::READ_ONLY));
        }
    }

    #[test]
    fn a_configuration_has_no_capability_at_all() {
        let text = serde_json::to_string(&spec(&plan(0)).unwrap()).unwrap();
        assert!(!text.contains("CAP_"), "{text}");
    }
}
