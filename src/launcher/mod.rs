//! To come.

pub mod cgroup;
pub mod seccomp;
pub mod steps;
