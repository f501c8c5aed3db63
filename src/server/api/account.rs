//! GetAccountSettings: what this instance allows, and what is used of it.

use hyper::StatusCode;
use serde_json::json;

use super::{Answer, Api, json_response};
use crate::server::intake::MAX_ZIP;

/// Lambda's limit on unpacked code. <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_UNZIPPED: u64 = 262_144_000;
/// Lambda's 75 GB for all code.
const MAX_CODE: u64 = 80_530_636_800;

impl Api {
    pub(super) fn account_settings(&self) -> Answer {
        let all = self.registry.page(None, usize::MAX);
        let layers = self.registry.layers(None);
        let sizes = all.iter().map(|record| record.code_size).chain(layers.iter().map(|layer| layer.code_size));
        let used: u64 = sizes.sum();
        let reserved: u32 = all.iter().filter_map(|record| record.reserved_concurrency).sum();
        let body = json!({
            "AccountLimit": {
                "TotalCodeSize": MAX_CODE,
                "CodeSizeUnzipped": MAX_UNZIPPED,
                "CodeSizeZipped": MAX_ZIP,
                "ConcurrentExecutions": self.concurrency,
                "UnreservedConcurrentExecutions": self.concurrency.saturating_sub(reserved),
            },
            "AccountUsage": { "TotalCodeSize": used, "FunctionCount": all.len() },
        });
        Ok(json_response(StatusCode::OK, &body))
    }
}
