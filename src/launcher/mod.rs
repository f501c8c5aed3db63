//! To come.

<<<<<<< HEAD
pub mod seccomp;
=======
pub mod cgroup;
pub mod seccomp;
pub mod steps;
>>>>>>> container
