//! GetAccountSettings: what this instance allows, and what is used of it.

use hyper::StatusCode;
use serde_json::json;

use super::{Answer, Api, json_response};
use crate::server::intake::MAX_ZIP;

/// Lambda's limit on unpacked code. <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_UNZIPPED: u64 = 262_144_000;

impl Api {
    pub(super) fn account_settings(&self) -> Answer {
        let all = self.registry.page(None, usize::MAX);
        let reserved: u32 = all.iter().filter_map(|record| record.reserved_concurrency).sum();
        let concurrency = self.in_force.now().concurrency;
        let body = json!({
            "AccountLimit": {
                "TotalCodeSize": self.intake.room().budget(),
                "CodeSizeUnzipped": MAX_UNZIPPED,
                "CodeSizeZipped": MAX_ZIP,
                "ConcurrentExecutions": concurrency,
                "UnreservedConcurrentExecutions": concurrency.saturating_sub(reserved),
            },
            "AccountUsage": { "TotalCodeSize": self.registry.total_code_size(), "FunctionCount": all.len() },
        });
        Ok(json_response(StatusCode::OK, &body))
    }
}
