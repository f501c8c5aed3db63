//! A plan as an OCI runtime configuration, for people: `kiln container inspect --oci`.
//!
//! Only ever made from the plan that a launch executes; nothing is launched from it.

use oci_spec::OciSpecError;
use oci_spec::runtime::*;
pub fn spec(_: &super::Plan) -> Result<Spec, OciSpecError> { SpecBuilder::default().build() }
