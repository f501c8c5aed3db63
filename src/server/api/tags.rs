//! Tags: kept and shown for whoever runs things by them. A function runs the same whatever its tags are, but for one:
//! `kiln:reuse` = `never` gives each invocation a fresh container, since Lambda's API has no member for that.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::error::{ApiError, Kind};
use super::invoke::empty;
use super::manage::{in_progress, parse};
use super::target::Target;
use super::validation::Validation;
use super::{Answer, Api, json_response};
use crate::function::Reuse;

/// Lambda's limits. <https://docs.aws.amazon.com/lambda/latest/dg/configuration-tags.html>
const MAX_TAGS: usize = 50;
const MAX_TAG_KEY: usize = 128;
const MAX_TAG_VALUE: usize = 256;

/// As Lambda's messages quote it.
const PATTERN: &str = r"arn:(aws[a-zA-Z-]*):lambda:[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:(function:[a-zA-Z0-9-_]+(:(\$LATEST|[a-zA-Z0-9-_]+))?|layer:([a-zA-Z0-9-_]+)|code-signing-config:csc-[a-z0-9]{17}|event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    tags: Option<BTreeMap<String, String>>,
}

impl Api {
    pub(super) fn list_tags(&self, resource: &str) -> Answer {
        let target = self.tagged(resource)?;
        let arn = target.arn(&self.home);
        let record = self.registry.record(&target.name).ok_or_else(|| ApiError::no_function(&arn))?;
        Ok(json_response(StatusCode::OK, &json!({ "Tags": record.tags })))
    }

    pub(super) async fn tag_resource(self, resource: String, body: Bytes) -> Answer {
        let Some(new) = parse::<Given>(&body)?.tags else {
            return Err(Validation::missing("tags"));
        };
        let mut validation = Validation::default();
        check_lengths(&new, &mut validation);
        validation.finish()?;
        let target = self.tagged(&resource)?;
        if new.is_empty() {
            return Err(Kind::InvalidParameterValue.with("An error occurred and the request cannot be processed."));
        }
        self.retag(&target, |tags| tags.extend(new)).await
    }

    pub(super) async fn untag_resource(self, resource: String, keys: Vec<String>) -> Answer {
        if keys.is_empty() {
            return Err(Validation::missing("tagKeys"));
        }
        let target = self.tagged(&resource)?;
        self.retag(&target, |tags| tags.retain(|key, _| !keys.contains(key))).await
    }

    async fn retag(&self, target: &Target, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Answer {
        let arn = target.arn(&self.home);
        // Nobody else changes it meanwhile, so the tags that are looked at are those that are replaced.
        let _only = self.changing.enter(&target.name).ok_or_else(|| in_progress(&arn))?;
        let record = self.registry.record(&target.name).ok_or_else(|| ApiError::no_function(&arn))?;
        let mut tags = record.tags.clone();
        change(&mut tags);
        check(&tags)?;
        let reuse = Reuse::of_tags(&tags).unwrap_or_default();
        if tags == record.tags {
            // Stored as it is it would be another function to the pools: all that is warm would start again.
            return Ok(empty(StatusCode::NO_CONTENT));
        }
        self.change(target, None, move |draft| (draft.tags, draft.function.reuse) = (tags, reuse)).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// The function whose ARN this is. Here, a name alone is none.
    fn tagged(&self, resource: &str) -> Result<Target, ApiError> {
        let wrong =
            || Validation::only("resource", resource, format!("Member must satisfy regular expression pattern: {PATTERN}"));
        let is_function = matches!(resource.split(':').collect::<Vec<_>>()[..], ["arn", _, "lambda", _, _, "function", _, ..]);
        if !is_function {
            return Err(wrong());
        }
        let target = Target::parse(resource, None, &self.home).map_err(|error| match error.kind {
            Kind::Validation => wrong(),
            _ => error,
        })?;
        match target.qualifier {
            Some(_) => Err(Kind::InvalidParameterValue
                .with("Tags on function aliases and versions are not supported. Please specify a function ARN.")),
            None => Ok(target),
        }
    }
}

/// As `Tags` at creation and in TagResource.
pub fn check_lengths(tags: &BTreeMap<String, String>, validation: &mut Validation) {
    let shown = || {
        let tags: Vec<String> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{{{}}}", tags.join(", "))
    };
    let within = |text: &String, min: usize, max: usize| (min..=max).contains(&text.chars().count());
    for (good, what, min, max) in [
        (tags.keys().all(|key| within(key, 1, MAX_TAG_KEY)), "Map keys", 1, MAX_TAG_KEY),
        (tags.values().all(|value| within(value, 0, MAX_TAG_VALUE)), "Map value", 0, MAX_TAG_VALUE),
    ] {
        if !good {
            let constraint = format!(
                "{what} must satisfy constraint: [Member must have length less than or equal to {max}, Member must have length \
                 greater than or equal to {min}]"
            );
            validation.fail("tags", shown(), constraint);
        }
    }
}

/// How many there are, and what Kiln's own says.
pub fn check(tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if tags.len() > MAX_TAGS {
        return Err(Kind::InvalidParameterValue.with("Number of tags exceeds resource tag limit."));
    }
    match Reuse::of_tags(tags) {
        Ok(_) => Ok(()),
        Err(_) => Err(Kind::InvalidParameterValue.with(format!("The tag {} must be never or always.", Reuse::TAG))),
    }
}
