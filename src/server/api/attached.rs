//! What Lambda keeps beside a function: published versions, a policy, code signing. Here there is only `$LATEST` and
//! nothing attached to it, and that is what is answered: tools that manage functions ask for all of it.

use hyper::StatusCode;
use serde_json::json;

use super::error::Kind;
use super::manage::page_size;
use super::route::{Named, Page};
use super::shown::{Phase, configuration};
use super::target::{LATEST, qualified};
use super::{Answer, Api, json_response};

impl Api {
    pub(super) fn list_versions(&self, named: &Named, page: &Page) -> Answer {
        page_size(page)?;
        let (target, record) = self.find(named)?;
        if page.marker.is_some() {
            return Err(Kind::InvalidParameterValue.with("The Marker is not one that ListVersionsByFunction has given"));
        }
        let arn = qualified(target.arn(&self.home), Some(LATEST));
        let shown = configuration(&record, arn, Phase::Listed, &self.home, &self.runtimes_dir);
        Ok(json_response(StatusCode::OK, &json!({ "Versions": [shown] })))
    }

    pub(super) fn get_policy(&self, named: &Named) -> Answer {
        self.find(named)?;
        Err(Kind::ResourceNotFound.with("The resource you requested does not exist."))
    }

    pub(super) fn get_code_signing_config(&self, named: &Named) -> Answer {
        let (target, _) = self.find(named)?;
        Ok(json_response(StatusCode::OK, &json!({ "FunctionName": target.name.as_str() })))
    }
}
