//! Kiln as a service of systemd's: installed by `scripts/install`, driven by `systemctl` and through its doors, and ended in
//! every way that a host knows. Runs inside the virtual machines of `scripts/test-vm` only: it stops, kills and floods the
//! one Kiln of the machine, fills its memory and sets its clock.
//!
//! Each test begins with an installed, running and empty Kiln ([`machine::enter`]), and must leave the machine as it was:
//! when the service has stopped, nothing of it is there but its state and the sockets that systemd listens on.

#[path = "service/ends.rs"]
mod ends;
#[path = "service/host.rs"]
mod host;
#[path = "service/install.rs"]
mod install;
#[path = "service/instances.rs"]
mod instances;
#[path = "service/journal.rs"]
mod journal;
#[path = "service/machine.rs"]
#[allow(dead_code)] // serves several modules that come and go; each uses its part
mod machine;
#[path = "service/operations.rs"]
mod operations;
#[path = "service/quickstart.rs"]
mod quickstart;
#[path = "service/reboot.rs"]
mod reboot;
