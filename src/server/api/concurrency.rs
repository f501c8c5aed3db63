//! Reserved concurrency: invocations at once that are one function's own, and bound it.
//!
//! Only what callers ask for is checked and stored here; [`crate::server::pool`] enforces it, from the moment that the
//! answer goes out.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tracing::info;

use super::error::{ApiError, Kind};
use super::invoke::empty;
use super::manage::parse;
use super::route::Named;
use super::target::Target;
use super::validation::Validation;
use super::{Answer, Api, json_response};
use crate::registry::RegistryError;

/// What Lambda always leaves to functions without a reserve.
/// <https://docs.aws.amazon.com/lambda/latest/dg/concurrent-executions.html>
const MIN_UNRESERVED: u32 = 100;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Put {
    reserved_concurrent_executions: Option<i64>,
}

impl Api {
    pub(super) async fn put_function_concurrency(&self, named: &Named, body: &[u8]) -> Answer {
        let target = Target::parse(&named.function, named.qualifier.as_deref(), &self.home)?;
        let put: Put = parse(body)?;
        let mut validation = Validation::default();
        match put.reserved_concurrent_executions {
            None => validation.null("reservedConcurrentExecutions"),
            Some(number @ ..0) => {
                let constraint = "Member must have value greater than or equal to 0";
                validation.fail("reservedConcurrentExecutions", number, constraint);
            }
            Some(_) => {}
        }
        validation.finish()?;
        // Over every bound when it does not fit.
        let reserve = u32::try_from(put.reserved_concurrent_executions.unwrap_or_default()).unwrap_or(u32::MAX);
        self.reserve(&target, Some(reserve)).await?;
        info!(function = %target.name, reserve, "function has reserved concurrency");
        Ok(json_response(StatusCode::OK, &json!({ "ReservedConcurrentExecutions": reserve })))
    }

    pub(super) fn get_function_concurrency(&self, named: &Named) -> Answer {
        let target = Target::parse(&named.function, named.qualifier.as_deref(), &self.home)?;
        unqualified(&target)?;
        let record = self.registry.record(&target.name).ok_or_else(|| ApiError::no_function(&target.arn(&self.home)))?;
        Ok(json_response(
            StatusCode::OK,
            &record.reserved_concurrency.map_or_else(|| json!({}), |reserve| json!({ "ReservedConcurrentExecutions": reserve })),
        ))
    }

    pub(super) async fn delete_function_concurrency(&self, named: &Named) -> Answer {
        let target = Target::parse(&named.function, named.qualifier.as_deref(), &self.home)?;
        self.reserve(&target, None).await?;
        info!(function = %target.name, "function has no reserved concurrency");
        Ok(empty(StatusCode::NO_CONTENT))
    }

    async fn reserve(&self, target: &Target, reserve: Option<u32>) -> Result<(), ApiError> {
        unqualified(target)?;
        let concurrency = self.in_force.now().concurrency;
        let minimum = min_unreserved(concurrency);
        let stored = self.registry.set_reserve(&target.name, reserve, concurrency - minimum).await;
        stored.map_err(|error| match error {
            RegistryError::TooMuchReserved { .. } => Kind::InvalidParameterValue.with(format!(
                "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its \
                 minimum value of [{minimum}]."
            )),
            error => self.registry_failed(error, &target.arn(&self.home)),
        })?;
        self.engine.function_changed(&target.name);
        Ok(())
    }
}

fn unqualified(target: &Target) -> Result<(), ApiError> {
    match target.qualifier {
        None => Ok(()),
        Some(_) => Err(Kind::InvalidParameterValue.with(
            "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. Please \
             specify either a function name or an unqualified function ARN.",
        )),
    }
}

/// How much of `concurrency` cannot be reserved: Lambda's 100, or half of it where that is less. On an account as small as
/// that Lambda lets nothing be reserved at all; a host whose owner has chosen a small bound needs reserves the most.
fn min_unreserved(concurrency: u32) -> u32 {
    MIN_UNRESERVED.min(concurrency.div_ceil(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_half_of_a_small_bound_and_a_hundred_of_a_large_one_stays_unreserved() {
        let unreserved = |concurrency| min_unreserved(concurrency);
        assert_eq!([1, 2, 3, 10, 199, 200, 1000].map(unreserved), [1, 1, 2, 5, 100, 100, 100]);
    }
}
