//! Layers: published, shown, listed, deleted; and the layers that a function asks for.
//!
//! A layer's zip comes in exactly as a function's code does, and its version is a row that names it. What is said here
//! about a function's layers is Lambda's; they are put on top of each other by the launcher.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;

use super::download::location;
use super::error::{ApiError, Kind};
use super::invoke::empty;
use super::manage::{Source, parse, refused_code};
use super::route::Page;
use super::settings::MAX_DESCRIPTION;
use super::shown::timestamp;
use super::target::{Home, is_region};
use super::validation::Validation;
use super::{Answer, Api, json_response};
use crate::registry::{LayerName, LayerUse, LayerVersion};

/// Lambda's limit on a function's code and layers together, unpacked, in bytes.
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_UNPACKED: u64 = 262_144_000;
/// As many as the launcher mounts.
const MAX_LAYERS: usize = crate::wire::launcher::MAX_LAYERS;
/// As many as Lambda puts on a page.
const MAX_PAGE: usize = 50;
const MAX_LICENSE: usize = 512;
const MAX_RUNTIMES: usize = 15;
const ARCHITECTURES: [&str; 2] = ["x86_64", "arm64"];
/// Longest ARN in the model.
const MAX_ARN: usize = 2048;

const NAME_PATTERN: &str = r"(arn:[a-zA-Z0-9-]+:lambda:[a-zA-Z0-9-]+:\d{12}:layer:[a-zA-Z0-9-_]+)|[a-zA-Z0-9-_]+";
const ARN_PATTERN: &str =
    r"arn:(aws[a-zA-Z-]*)?:lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:layer:[a-zA-Z0-9-_]+:[0-9]+";

/// Which versions a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub runtime: Option<String>,
    pub architecture: Option<String>,
}

/// PublishLayerVersion.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Publish<'a> {
    #[serde(borrow)]
    content: Option<Source<'a>>,
    description: Option<String>,
    license_info: Option<String>,
    compatible_runtimes: Option<Vec<String>>,
    compatible_architectures: Option<Vec<String>>,
}

/// A version as the API shows it; lists leave the content out.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer_arn: Option<String>,
    layer_version_arn: String,
    description: String,
    created_date: String,
    version: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compatible_runtimes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compatible_architectures: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_info: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Content {
    location: String,
    code_sha256: String,
    code_size: u64,
}

impl Api {
    pub(super) fn get_layer_version(&self, layer: &str, version: &str, headers: &HeaderMap) -> Answer {
        let (name, version) = (self.layer_name(layer)?, version_number(version)?);
        self.show_layer(&name, version, headers)
    }

    pub(super) fn get_layer_version_by_arn(&self, arn: &str, headers: &HeaderMap) -> Answer {
        let Some(found) = LayerArn::parse(arn) else {
            let constraint = format!("Member must satisfy regular expression pattern: {ARN_PATTERN}");
            return Err(Validation::only("arn", arn, constraint));
        };
        if !found.is_at(&self.home) {
            return Err(no_layer());
        }
        self.show_layer(&found.name, found.version, headers)
    }

    pub(super) async fn publish_layer_version(self, name: LayerName, headers: HeaderMap, body: Bytes) -> Answer {
        // Tens of megabytes of JSON and base64 would hold up every other caller.
        let parsed = tokio::task::spawn_blocking(move || {
            let mut publish: Publish = parse(&body)?;
            let zip = publish.content.take().map(Source::zip);
            let given =
                (publish.description, publish.license_info, publish.compatible_runtimes, publish.compatible_architectures);
            Ok::<_, ApiError>((zip, given))
        });
        let (zip, given) = parsed.await.map_err(|error| Kind::Service.with(error.to_string()))??;
        let (description, license, runtimes, architectures) = given;
        let (description, runtimes) = (description.unwrap_or_default(), runtimes.unwrap_or_default());
        let architectures = architectures.unwrap_or_default();

        let mut validation = Validation::default();
        if zip.is_none() {
            validation.null("content");
        }
        for (field, text, most) in
            [("description", Some(&description), MAX_DESCRIPTION), ("licenseInfo", license.as_ref(), MAX_LICENSE)]
        {
            if let Some(text) = text.filter(|text| text.chars().count() > most) {
                validation.fail(field, text, format!("Member must have length less than or equal to {most}"));
            }
        }
        check_compatible(&mut validation, &runtimes, &architectures);
        validation.finish()?;
        // Null failed above.
        let zip = zip.unwrap_or_else(|| Err(Kind::Service.with("the layer's content was lost")))?;

        let kept = self.intake.keep(zip).await.map_err(refused_code)?;
        let draft = LayerVersion {
            name,
            version: 0,
            code: kept.code,
            code_size: kept.size,
            unpacked: kept.unpacked,
            description,
            license,
            runtimes,
            architectures,
            created_ms: 0,
        };
        crate::kill_point!("before-row");
        let stored = self.registry.publish_layer(draft).await;
        let layer = stored.map_err(|error| self.registry_failed(error, ""))?;
        crate::kill_point!("after-row");
        drop(kept);
        info!(layer = %layer.name, version = layer.version, code = %layer.code, "layer published");
        Ok(json_response(StatusCode::CREATED, &self.shown(&layer, &headers)))
    }

    fn show_layer(&self, name: &LayerName, version: u64, headers: &HeaderMap) -> Answer {
        let layer = self.registry.layer(name, version).ok_or_else(no_layer)?;
        Ok(json_response(StatusCode::OK, &self.shown(&layer, headers)))
    }

    /// Each layer once, with the latest of its versions that pass.
    pub(super) fn list_layers(&self, filter: &Filter, page: &Page) -> Answer {
        filter.check()?;
        let most = limit(page)?;
        let behind = after(page, |text| LayerName::parse(text).ok())?;
        let mut latest: Vec<std::sync::Arc<LayerVersion>> = Vec::new();
        for layer in self.registry.layers(None).into_iter().filter(|layer| filter.passes(layer)) {
            match latest.last_mut().filter(|last| last.name == layer.name) {
                Some(last) => *last = layer,
                None => latest.push(layer),
            }
        }
        latest.retain(|layer| behind.as_ref().is_none_or(|last| layer.name > *last));
        let more = latest.len() > most;
        latest.truncate(most);
        let item = |layer: &std::sync::Arc<LayerVersion>| {
            json!({
                "LayerName": layer.name.as_str(),
                "LayerArn": self.home.layer_arn(&layer.name),
                "LatestMatchingVersion": self.listed(layer),
            })
        };
        let mut body = json!({ "Layers": latest.iter().map(item).collect::<Vec<_>>() });
        if let Some(last) = latest.last().filter(|_| more) {
            body["NextMarker"] = STANDARD.encode(last.name.as_str()).into();
        }
        Ok(json_response(StatusCode::OK, &body))
    }

    /// The latest first.
    pub(super) fn list_layer_versions(&self, layer: &str, filter: &Filter, page: &Page) -> Answer {
        let name = self.layer_name(layer)?;
        filter.check()?;
        let most = limit(page)?;
        let below = after(page, |text| text.parse::<u64>().ok())?;
        let mut versions = self.registry.layers(Some(&name));
        versions.retain(|layer| filter.passes(layer) && below.is_none_or(|below| layer.version < below));
        versions.reverse();
        let more = versions.len() > most;
        versions.truncate(most);
        let mut body = json!({ "LayerVersions": versions.iter().map(|layer| self.listed(layer)).collect::<Vec<_>>() });
        if let Some(last) = versions.last().filter(|_| more) {
            body["NextMarker"] = STANDARD.encode(last.version.to_string()).into();
        }
        Ok(json_response(StatusCode::OK, &body))
    }

    pub(super) async fn delete_layer_version(self, layer: String, version: String) -> Answer {
        let (name, version) = (self.layer_name(&layer)?, version_number(&version)?);
        crate::kill_point!("before-delete-row");
        let deleted = self.registry.delete_layer(&name, version).await.map_err(|error| self.registry_failed(error, ""))?;
        if let Some(layer) = deleted {
            self.intake.let_go(layer.code);
            info!(layer = %name, version, "layer's version deleted");
        }
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// The layers that a function asks for, in its order.
    pub(super) fn layer_uses(&self, arns: &[String]) -> Result<Vec<LayerUse>, ApiError> {
        if arns.len() > MAX_LAYERS {
            return Err(Kind::InvalidParameterValue.with(format!("Cannot reference more than {MAX_LAYERS} layers.")));
        }
        let mut uses: Vec<(LayerUse, &str)> = Vec::new();
        for arn in arns {
            let unknown = || Kind::InvalidParameterValue.with(format!("Layer version {arn} does not exist."));
            // Lambda's own, which it puts below every function, are not here.
            let found = LayerArn::parse(arn).ok_or_else(unknown)?;
            if found.account != self.home.account {
                return Err(Kind::AccessDenied.with(format!(
                    "User is not authorized to perform: lambda:GetLayerVersion on resource: {arn} because no resource-based policy \
                     allows the lambda:GetLayerVersion action"
                )));
            }
            if found.region != self.home.region {
                return Err(Kind::InvalidParameterValue.with(format!(
                    "Layers are not in the same region as the function. Layers are expected to be in region {}.",
                    self.home.region
                )));
            }
            let layer = self.registry.layer(&found.name, found.version).ok_or_else(unknown)?;
            if let Some((_, other)) = uses.iter().find(|(other, _)| other.name == layer.name) {
                return Err(Kind::InvalidParameterValue.with(format!(
                    "Two different versions of the same layer are not allowed to be referenced in the same function. {other} and \
                     {arn} are versions of the same layer."
                )));
            }
            uses.push((LayerUse::from(&*layer), arn));
        }
        Ok(uses.into_iter().map(|(layer, _)| layer).collect())
    }

    pub(super) fn layer_name(&self, text: &str) -> Result<LayerName, ApiError> {
        let wrong = |constraint: String| Validation::only("layerName", text, constraint);
        let pattern = || wrong(format!("Member must satisfy regular expression pattern: {NAME_PATTERN}"));
        if text.starts_with("arn:") {
            // The ARN of a layer is that of a version without its number.
            let found = LayerArn::parse(&format!("{text}:1")).ok_or_else(pattern)?;
            return if found.is_at(&self.home) { Ok(found.name) } else { Err(no_layer()) };
        }
        if text.len() > LayerName::MAX {
            return Err(wrong(format!("Member must have length less than or equal to {}", LayerName::MAX)));
        }
        LayerName::parse(text).map_err(|_| pattern())
    }

    fn shown(&self, layer: &LayerVersion, headers: &HeaderMap) -> Shown {
        Shown {
            content: Some(Content {
                location: location(&layer.code, headers),
                code_sha256: layer.code.base64(),
                code_size: layer.code_size,
            }),
            layer_arn: Some(self.home.layer_arn(&layer.name)),
            ..self.listed(layer)
        }
    }

    fn listed(&self, layer: &LayerVersion) -> Shown {
        Shown {
            content: None,
            layer_arn: None,
            layer_version_arn: self.home.layer_version_arn(&layer.name, layer.version),
            description: layer.description.clone(),
            created_date: timestamp(layer.created_ms),
            version: layer.version,
            compatible_runtimes: layer.runtimes.clone(),
            compatible_architectures: layer.architectures.clone(),
            license_info: layer.license.clone(),
        }
    }
}

impl Home {
    /// `arn:aws:lambda:<region>:<account>:layer:<name>`
    pub fn layer_arn(&self, name: &LayerName) -> String {
        format!("arn:aws:lambda:{}:{}:layer:{name}", self.region, self.account)
    }

    pub fn layer_version_arn(&self, name: &LayerName, version: u64) -> String {
        format!("{}:{version}", self.layer_arn(name))
    }
}

/// The ARN of a layer's version, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct LayerArn {
    region: String,
    account: String,
    name: LayerName,
    version: u64,
}

impl LayerArn {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "lambda", region, account, "layer", name, version] = parts[..] else { return None };
        let known = partition.is_empty()
            || (partition.starts_with("aws") && partition.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-'));
        let good = known && is_region(region) && account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let digits = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
        // A number that is too large is one that no version has.
        let version = version.parse().unwrap_or(u64::MAX);
        let name = LayerName::parse(name).ok().filter(|_| good && digits)?;
        Some(Self { region: region.to_owned(), account: account.to_owned(), name, version })
    }

    fn is_at(&self, home: &Home) -> bool {
        self.region == home.region && self.account == home.account
    }
}

impl Filter {
    fn check(&self) -> Result<(), ApiError> {
        match self.architecture.as_deref().filter(|architecture| !ARCHITECTURES.contains(architecture)) {
            None => Ok(()),
            Some(other) => {
                let constraint = format!("Member must satisfy enum value set: [{}]", ARCHITECTURES.join(", "));
                Err(Validation::only("compatibleArchitecture", other, constraint))
            }
        }
    }

    fn passes(&self, layer: &LayerVersion) -> bool {
        let among = |wanted: &Option<String>, list: &[String]| wanted.as_ref().is_none_or(|wanted| list.contains(wanted));
        among(&self.runtime, &layer.runtimes) && among(&self.architecture, &layer.architectures)
    }
}

fn limit(page: &Page) -> Result<usize, ApiError> {
    match page.max_items.as_deref().map(|text| (text, text.parse::<i64>())) {
        None => Ok(MAX_PAGE),
        Some((_, Err(_))) => Err(Kind::Serialization.with("STRING_VALUE can not be converted to an Integer")),
        Some((_, Ok(items))) if (1..=MAX_PAGE as i64).contains(&items) => Ok(items as usize),
        Some((text, Ok(..1))) => Err(Validation::only("maxItems", text, "Member must have value greater than or equal to 1")),
        Some((text, Ok(_))) => {
            Err(Validation::only("maxItems", text, format!("Member must have value less than or equal to {MAX_PAGE}")))
        }
    }
}

/// What the page before ended with.
fn after<T>(page: &Page, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ApiError> {
    let read = |marker: &String| {
        let text = STANDARD.decode(marker).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let wrong = || Kind::InvalidParameterValue.with("The Marker is not one that this operation has given");
        text.as_deref().and_then(&read).ok_or_else(wrong)
    };
    page.marker.as_ref().map(read).transpose()
}

/// The form of `Layers`, as far as the model's constraint says it.
pub(super) fn check_arns(arns: &[String], validation: &mut Validation) {
    let layer = |arn: &str| arn.len() <= MAX_ARN && (LayerArn::parse(arn).is_some() || arn.contains(":lambda:::awslayer:"));
    if arns.iter().any(|arn| !layer(arn)) {
        let constraint = format!(
            "Member must satisfy constraint: [Member must have length less than or equal to {MAX_ARN}, Member must have length \
             greater than or equal to 1, Member must satisfy regular expression pattern: \
             ({ARN_PATTERN})|(arn:[a-zA-Z0-9-]+:lambda:::awslayer:[a-zA-Z0-9-_]+), Member must not be null]"
        );
        validation.fail("layers", format!("[{}]", arns.join(", ")), constraint);
    }
}

/// A function's code and its layers together.
pub(super) fn check_unpacked(code: u64, layers: &[LayerUse]) -> Result<(), ApiError> {
    let all = layers.iter().map(|layer| layer.unpacked).fold(code, u64::saturating_add);
    if all <= MAX_UNPACKED {
        return Ok(());
    }
    Err(Kind::InvalidParameterValue.with(format!(
        "Function code combined with layers exceeds the maximum allowed size of {MAX_UNPACKED} bytes. The actual size is {all} bytes."
    )))
}

/// Runtimes that are not installed here may be named: a layer is often made for several, and a runtime may come later.
fn check_compatible(validation: &mut Validation, runtimes: &[String], architectures: &[String]) {
    let shown = |list: &[String]| format!("[{}]", list.join(", "));
    for (field, list, most) in
        [("compatibleRuntimes", runtimes, MAX_RUNTIMES), ("compatibleArchitectures", architectures, ARCHITECTURES.len())]
    {
        if list.len() > most {
            validation.fail(field, shown(list), format!("Member must have length less than or equal to {most}"));
        }
    }
    let named = |text: &String| {
        (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    if !runtimes.iter().all(named) {
        let constraint = "Member must satisfy constraint: [Member must have length less than or equal to 40, Member must satisfy \
                          regular expression pattern: [a-z0-9.-]+, Member must not be null]";
        validation.fail("compatibleRuntimes", shown(runtimes), constraint);
    }
    if architectures.iter().any(|architecture| !ARCHITECTURES.contains(&architecture.as_str())) {
        let constraint = format!(
            "Member must satisfy constraint: [Member must satisfy enum value set: [{}], Member must not be null]",
            ARCHITECTURES.join(", ")
        );
        validation.fail("compatibleArchitectures", shown(architectures), constraint);
    }
}

fn version_number(text: &str) -> Result<u64, ApiError> {
    match text.parse::<i128>() {
        Ok(number @ 1..) => Ok(u64::try_from(number).unwrap_or(u64::MAX)),
        Ok(_) => Err(Kind::InvalidParameterValue.with("Layer Version Cannot be less than 1")),
        Err(_) => Err(Validation::only("versionNumber", text, "Member must be a number")),
    }
}

fn no_layer() -> ApiError {
    Kind::ResourceNotFound.with("The resource you requested does not exist.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_names_one_version_of_one_layer() {
        let arn = "arn:aws:lambda:eu-west-1:123456789012:layer:my-Layer_1:42";
        let parsed = LayerArn::parse(arn).unwrap();
        assert_eq!((parsed.region.as_str(), parsed.account.as_str()), ("eu-west-1", "123456789012"));
        assert_eq!((parsed.name.as_str(), parsed.version), ("my-Layer_1", 42));
        let huge = format!("arn:aws:lambda:eu-west-1:123456789012:layer:a:{}", "9".repeat(30));
        assert_eq!(LayerArn::parse(&huge).unwrap().version, u64::MAX);
        for text in [
            "",
            "a:1",
            "arn:aws:lambda:eu-west-1:123456789012:layer:a",
            "arn:aws:lambda:eu-west-1:123456789012:layer:a:b",
            "arn:aws:lambda:eu-west-1:123456789012:layer:a:-1",
            "arn:aws:lambda:eu-west-1:123456789012:layer:a.b:1",
            "arn:aws:lambda:eu-west-1:123456789012:function:a:1",
            "arn:aws:lambda:nowhere:123456789012:layer:a:1",
            "arn:aws:lambda:eu-west-1:12345:layer:a:1",
            "arn:gcp:lambda:eu-west-1:123456789012:layer:a:1",
        ] {
            assert_eq!(LayerArn::parse(text), None, "{text}");
        }
    }

    #[test]
    fn code_and_layers_fill_the_limit_to_the_last_byte_and_no_further() {
        let layer = |unpacked| LayerUse {
            name: LayerName::parse("a").unwrap(),
            version: 1,
            code: crate::code::Digest::of(b""),
            code_size: 1,
            unpacked,
        };
        assert!(check_unpacked(200_000_000, &[layer(62_000_000), layer(144_000)]).is_ok());
        let error = check_unpacked(200_000_000, &[layer(62_000_000), layer(144_001)]).unwrap_err();
        assert_eq!(
            error.message,
            "Function code combined with layers exceeds the maximum allowed size of 262144000 bytes. The actual size is 262144001 bytes."
        );
    }
}
