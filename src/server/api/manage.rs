//! Managing functions: create, show, list, update, delete.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};
use uuid::Uuid;

use super::download::location;
use super::error::{ApiError, Kind};
use super::invoke::empty;
use super::layers::check_unpacked;
use super::route::{Named, Page};
use super::settings::{Checked, Rules, Settings};
use super::shown::{Phase, configuration};
use super::target::{LATEST, NewNameError, Target, qualified};
use super::validation::Validation;
use super::{Answer, Api, json_response};
use crate::code::Digest;
use crate::function::{Function, FunctionName, Memory, Reuse, Stamp, Timeout, TmpSize};
use crate::registry::{Draft, Record, RegistryError};
use crate::runtime::{Recipe, RuntimeName};
use crate::server::intake::program::foreign;
use crate::server::intake::{IntakeError, MAX_ZIP};
use crate::wire::supervisor::ZipRefusal;

/// As many as Lambda puts on a page.
const MAX_PAGE: usize = 50;
/// What Lambda gives a function that asks for nothing.
const DEFAULT_MEMORY_MIB: u32 = 128;
const DEFAULT_TIMEOUT_S: u32 = 3;
const EMPTY_ZIP: &str = "Uploaded file must be a non-empty zip";

/// Where code comes from: `Code` in CreateFunction, the body itself in UpdateFunctionCode.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Source<'a> {
    #[serde(borrow)]
    zip_file: Option<Text<'a>>,
    s3_bucket: Option<String>,
    image_uri: Option<String>,
}

/// Borrowed as a rule, so that 70 MB are not copied; owned when the JSON escapes something (`\/`).
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct New<'a> {
    function_name: Option<String>,
    #[serde(borrow)]
    code: Option<Source<'a>>,
}

/// UpdateFunctionCode, but for its source.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Recode {
    dry_run: Option<bool>,
}

impl Api {
    pub(super) async fn create_function(self, body: Bytes) -> Answer {
        // Tens of megabytes of JSON and base64 would hold up every other caller.
        let parsed = tokio::task::spawn_blocking(move || {
            let new: New = parse(&body)?;
            let settings: Settings = parse(&body)?;
            let given = new.code.is_some();
            let zip = new.code.map(Source::zip);
            Ok::<_, ApiError>((new.function_name, settings, given, zip))
        });
        let (name, settings, given, zip) = parsed.await.map_err(|error| Kind::Service.with(error.to_string()))??;

        let mut validation = Validation::default();
        let name = match name.as_deref().map(|text| (text, Target::parse_new(text, &self.home))) {
            Some((_, Ok(name))) => Some(name),
            Some((_, Err(NewNameError::Whole(error)))) => return Err(error),
            Some((text, Err(NewNameError::Constraint(constraint)))) => {
                validation.fail("functionName", text, constraint);
                None
            }
            None => {
                validation.null("functionName");
                None
            }
        };
        if settings.role.is_none() {
            validation.null("role");
        }
        if !given {
            validation.null("code");
        }
        let mut checked = settings.check(validation, &self.rules(name.as_ref()))?;
        let layers = checked.layers.take().unwrap_or_default();
        // The constraints hold, so there is a name, and there is code.
        let (Some(name), Some(zip)) = (name, zip) else { return Err(Kind::Service.with("a name was lost")) };
        let mut draft = new_draft(&name, checked)?;
        draft.layers = self.layer_uses(&layers)?;
        let zip = zip?;

        let _only = self.changing.enter(&name).ok_or_else(|| ApiError::exists(name.as_str()))?;
        if self.registry.record(&name).is_some() {
            return Err(ApiError::exists(name.as_str()));
        }
        let kept = self.intake.keep(zip).await.map_err(refused_code)?;
        self.check_program(kept.code, &draft.function.runtime)?;
        (draft.function.code, draft.code_size, draft.unpacked) = (kept.code, kept.size, kept.unpacked);
        check_unpacked(draft.unpacked, &draft.layers)?;
        let arn = self.home.arn(name.as_str());
        crate::kill_point!("before-row");
        let record = self.registry.create(draft).await.map_err(|error| self.registry_failed(error, &arn))?;
        crate::kill_point!("after-row");
        drop(kept);
        info!(function = %name, code = %record.function.code, "function created");
        Ok(self.configured(StatusCode::CREATED, &record, arn, Phase::Creating))
    }

    pub(super) fn get_function(&self, named: &Named, headers: &HeaderMap) -> Answer {
        let (target, record) = self.find(named)?;
        let shown = configuration(&record, target.arn_as_asked(&self.home), Phase::Ready, &self.home, &self.runtimes_dir);
        let location = location(&record.function.code, headers);
        let mut body = json!({ "Configuration": shown, "Code": { "RepositoryType": "S3", "Location": location } });
        if let Some(reserved) = record.reserved_concurrency {
            body["Concurrency"] = json!({ "ReservedConcurrentExecutions": reserved });
        }
        if !record.tags.is_empty() {
            body["Tags"] = json!(record.tags);
        }
        Ok(json_response(StatusCode::OK, &body))
    }

    pub(super) fn get_function_configuration(&self, named: &Named) -> Answer {
        let (target, record) = self.find(named)?;
        Ok(self.configured(StatusCode::OK, &record, target.arn_as_asked(&self.home), Phase::Ready))
    }

    pub(super) fn list_functions(&self, page: &Page, version: Option<&str>) -> Answer {
        let limit = page_size(page)?;
        // With ALL, Lambda lists every version and qualifies their ARNs; here each function has one.
        let qualifier = match version {
            None => None,
            Some("ALL") => Some(LATEST),
            Some(other) => {
                return Err(Validation::only("functionVersion", other, "Member must satisfy enum value set: [ALL]"));
            }
        };
        // The marker is the last name of the page before, in base64 so that nobody takes it for anything else.
        let after = page.marker.as_deref().map(|marker| {
            let name = STANDARD.decode(marker).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let name = name.and_then(|name| FunctionName::parse(&name).ok());
            name.ok_or_else(|| Kind::InvalidParameterValue.with("The Marker is not one that ListFunctions has given"))
        });
        // One more than is shown tells whether there is another page.
        let mut records = self.registry.page(after.transpose()?.as_ref(), limit + 1);
        let more = records.len() > limit;
        records.truncate(limit);
        let shown = |record: &Arc<Record>| {
            let arn = qualified(self.home.arn(record.function.name.as_str()), qualifier);
            configuration(record, arn, Phase::Listed, &self.home, &self.runtimes_dir)
        };
        let mut body = json!({ "Functions": records.iter().map(shown).collect::<Vec<_>>() });
        if let Some(last) = records.last().filter(|_| more) {
            body["NextMarker"] = STANDARD.encode(last.function.name.as_str()).into();
        }
        Ok(json_response(StatusCode::OK, &body))
    }

    pub(super) async fn update_function_code(self, target: Target, body: Bytes) -> Answer {
        let parsed = tokio::task::spawn_blocking(move || {
            let source: Source = parse(&body)?;
            let (recode, settings): (Recode, Settings) = (parse(&body)?, parse(&body)?);
            Ok::<_, ApiError>((source.zip(), recode, settings))
        });
        let (zip, recode, settings) = parsed.await.map_err(|error| Kind::Service.with(error.to_string()))??;
        let revision = settings.revision_id.clone();
        settings.with_code().check(Validation::default(), &self.rules(Some(&target.name)))?;
        let zip = zip?;
        let arn = target.arn(&self.home);
        let _only = self.changing.enter(&target.name).ok_or_else(|| in_progress(&arn))?;
        let expected = self.expected(&target.name, revision.as_deref(), &arn)?;
        let before = self.registry.record(&target.name).ok_or_else(|| ApiError::no_function(&arn))?;
        let kept = self.intake.keep_instead_of(before.code_size, zip).await.map_err(refused_code)?;
        self.check_program(kept.code, &before.function.runtime)?;
        check_unpacked(kept.unpacked, &before.layers)?;
        if recode.dry_run == Some(true) {
            // It is a good zip. No row comes to name it, so it goes again.
            return Ok(self.configured(StatusCode::OK, &before, target.arn_as_asked(&self.home), Phase::Ready));
        }
        let (code, size, unpacked) = (kept.code, kept.size, kept.unpacked);
        crate::kill_point!("before-row");
        let change = move |draft: &mut Draft| (draft.function.code, draft.code_size, draft.unpacked) = (code, size, unpacked);
        let record = self.change(&target, expected, change).await?;
        crate::kill_point!("after-row");
        drop(kept);
        info!(function = %target.name, %code, "function has new code");
        Ok(self.configured(StatusCode::OK, &record, target.arn_as_asked(&self.home), Phase::Updating))
    }

    pub(super) async fn update_function_configuration(self, target: Target, body: Bytes) -> Answer {
        let settings: Settings = parse(&body)?;
        let revision = settings.revision_id.clone();
        let mut checked = settings.without_code().check(Validation::default(), &self.rules(Some(&target.name)))?;
        let arn = target.arn(&self.home);
        let _only = self.changing.enter(&target.name).ok_or_else(|| in_progress(&arn))?;
        let expected = self.expected(&target.name, revision.as_deref(), &arn)?;
        if let (Some(runtime), Some(before)) = (&checked.runtime, self.registry.function(&target.name)) {
            self.check_program(before.code, runtime)?;
        }
        let layers = checked.layers.take().map(|arns| self.layer_uses(&arns)).transpose()?;
        if let (Some(layers), Some(record)) = (&layers, self.registry.record(&target.name)) {
            check_unpacked(record.unpacked, layers)?;
        }
        let change = move |draft: &mut Draft| {
            checked.apply(draft);
            if let Some(layers) = layers {
                draft.layers = layers;
            }
        };
        let record = self.change(&target, expected, change).await?;
        info!(function = %target.name, "function has a new configuration");
        Ok(self.configured(StatusCode::OK, &record, target.arn_as_asked(&self.home), Phase::Updating))
    }

    pub(super) async fn delete_function(self, target: Target) -> Answer {
        let asked = target.arn_as_asked(&self.home);
        self.registry.function(&target.name).ok_or_else(|| ApiError::no_function(&asked))?;
        if target.qualifier.is_some() {
            return Err(if target.is_latest() {
                Kind::InvalidParameterValue.with("$LATEST version cannot be deleted without deleting the function.")
            } else {
                ApiError::no_function(&asked)
            });
        }
        crate::kill_point!("before-delete-row");
        let record = self.registry.delete(&target.name).await.map_err(|error| self.registry_failed(error, &asked))?;
        self.engine.function_changed(&target.name);
        self.intake.release(&record.function);
        info!(function = %target.name, "function deleted");
        Ok(empty(StatusCode::NO_CONTENT))
    }

    fn rules<'a>(&'a self, function: Option<&'a FunctionName>) -> Rules<'a> {
        Rules { function, runtimes_dir: &self.runtimes_dir, limits: self.profile.limits() }
    }

    pub(super) fn find(&self, named: &Named) -> Result<(Target, Arc<Record>), ApiError> {
        let target = Target::parse(&named.function, named.qualifier.as_deref(), &self.home)?;
        match self.registry.record(&target.name).filter(|_| target.is_latest()) {
            Some(record) => Ok((target, record)),
            None => Err(ApiError::no_function(&target.arn_as_asked(&self.home))),
        }
    }

    /// The revision that the caller wants to change, if it names one. A stale one is refused before any work is done;
    /// the registry looks once more when the change is stored.
    fn expected(&self, name: &FunctionName, given: Option<&str>, arn: &str) -> Result<Option<Uuid>, ApiError> {
        let Some(given) = given else { return Ok(None) };
        let current = self.registry.record(name).ok_or_else(|| ApiError::no_function(arn))?.revision;
        match Uuid::parse_str(given) {
            Ok(given) if given == current => Ok(Some(given)),
            _ => Err(ApiError::registry(RegistryError::Stale(name.clone()), arn)),
        }
    }

    pub(super) async fn change(
        &self,
        target: &Target,
        expected: Option<Uuid>,
        change: impl FnOnce(&mut Draft) + Send + 'static,
    ) -> Result<Arc<Record>, ApiError> {
        let arn = target.arn(&self.home);
        let before = self.registry.function(&target.name).ok_or_else(|| ApiError::no_function(&arn))?;
        let updated = self.registry.update(&target.name, expected, Box::new(change)).await;
        let record = updated.map_err(|error| self.registry_failed(error, &arn))?;
        self.engine.function_changed(&target.name);
        self.intake.release(&before);
        Ok(record)
    }

    pub(super) fn registry_failed(&self, error: RegistryError, arn: &str) -> ApiError {
        if let RegistryError::Database(error) = &error {
            warn!(%error, "the registry could not be written");
            if error.is_full() {
                return Kind::Service.with(self.intake.room().full());
            }
        }
        ApiError::registry(error, arn)
    }

    /// Lambda would take it, and fail at the first invocation.
    fn check_program(&self, code: Digest, runtime: &RuntimeName) -> Result<(), ApiError> {
        let recipe = Recipe::read(&self.runtimes_dir, runtime).ok().flatten();
        match recipe.and_then(|recipe| foreign(&self.state_dir.join("code"), code, &recipe)) {
            Some(why) => Err(Kind::InvalidParameterValue.with(why)),
            None => Ok(()),
        }
    }

    fn configured(&self, status: StatusCode, record: &Record, arn: String, phase: Phase) -> Response<Full<Bytes>> {
        json_response(status, &configuration(record, arn, phase, &self.home, &self.runtimes_dir))
    }
}

impl Source<'_> {
    pub(super) fn zip(self) -> Result<Vec<u8>, ApiError> {
        let elsewhere = self.image_uri.is_some() || self.s3_bucket.is_some();
        if self.zip_file.is_some() && elsewhere {
            return Err(
                Kind::InvalidParameterValue.with("Please do not provide other FunctionCode parameters when providing a ZipFile.")
            );
        }
        if self.image_uri.is_some() {
            return Err(
                Kind::InvalidParameterValue.with("Please don't provide ImageUri when updating a function with packageType Zip.")
            );
        }
        if self.s3_bucket.is_some() {
            return Err(Kind::InvalidParameterValue.with(
                "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist",
            ));
        }
        let Some(Text(text)) = self.zip_file else {
            return Err(Kind::InvalidParameterValue.with("Please provide a source for function code."));
        };
        let zip = STANDARD
            .decode(text.as_bytes())
            .map_err(|error| Kind::Serialization.with(format!("ZipFile is not base64: {error}")))?;
        if zip.is_empty() {
            return Err(Kind::InvalidParameterValue.with("Uploaded file must be a non-empty zip"));
        }
        if zip.is_empty() {
            return Err(Kind::InvalidParameterValue.with(EMPTY_ZIP));
        }
        if zip.len() >= MAX_ZIP {
            return Err(Kind::RequestEntityTooLarge.with(format!("Zipped size must be smaller than {MAX_ZIP} bytes")));
        }
        Ok(zip)
    }
}

fn new_draft(name: &FunctionName, checked: Checked) -> Result<Draft, ApiError> {
    let (Some(runtime), Some(handler)) = (checked.runtime.clone(), checked.handler.clone()) else {
        return Err(Kind::InvalidParameterValue
            .with("Runtime and Handler are mandatory parameters for functions created with deployment packages."));
    };
    let internal = |error: crate::function::NotALimit| Kind::Service.with(error.to_string());
    let function = Function {
        name: name.clone(),
        runtime,
        handler,
        memory: Memory::from_mib(DEFAULT_MEMORY_MIB).map_err(internal)?,
        timeout: Timeout::from_secs(DEFAULT_TIMEOUT_S).map_err(internal)?,
        tmp: TmpSize::DEFAULT,
        vars: BTreeMap::new(),
        code: Digest::from_bytes([0; 32]),
        layers: Vec::new(),
        reuse: Reuse::Always,
        stamp: Stamp(0),
    };
    let (role, description, layers, tags) = (String::new(), String::new(), Vec::new(), BTreeMap::new());
    let mut draft = Draft { function, role, description, code_size: 0, unpacked: 0, layers, tags };
    checked.apply(&mut draft);
    Ok(draft)
}

/// How many of a list are wanted, and at most how many there are on a page.
pub(super) fn page_size(page: &Page) -> Result<usize, ApiError> {
    let Some(text) = page.max_items.as_deref() else { return Ok(MAX_PAGE) };
    let items: i64 = text.parse().map_err(|_| Kind::Serialization.with("STRING_VALUE can not be converted to an Integer"))?;
    match items {
        1..=10_000 => Ok(MAX_PAGE.min(items as usize)),
        ..1 => Err(Validation::only("maxItems", items, "Member must have value greater than or equal to 1")),
        _ => Err(Validation::only("maxItems", items, "Member must have value less than or equal to 10000")),
    }
}

/// What a body that is not what the operation takes is told: no JSON at all, or JSON of another shape.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Kind::Serialization.with(error.to_string()),
        _ => Kind::InvalidRequestContent.with(format!("Could not parse request body into json: {error}")),
    })
}

pub(super) fn refused_code(error: IntakeError) -> ApiError {
    match error {
        IntakeError::Zip(ZipRefusal::TooLarge) => {
            Kind::InvalidParameterValue.with("Unzipped size must be smaller than 262144000 bytes")
        }
        IntakeError::Zip(ZipRefusal::Empty) => Kind::InvalidParameterValue.with(EMPTY_ZIP),
        IntakeError::Budget(why) => {
            info!(%why, "the code budget is used up");
            Kind::CodeStorageExceeded.with("Code storage limit exceeded.")
        }
        IntakeError::NoRoom(why) => {
            warn!(why, "code could not be taken in");
            Kind::Service.with(why)
        }
        // Lambda has one sentence for all others; ours says in the log which it was.
        IntakeError::Zip(why) => {
            info!(?why, "a zip was refused");
            Kind::InvalidParameterValue.with("Could not unzip uploaded file. Please check your file, then try to upload again.")
        }
        error => {
            warn!(%error, "code could not be taken in");
            Kind::Service.with(format!("the code could not be stored: {error}"))
        }
    }
}

pub(super) fn in_progress(arn: &str) -> ApiError {
    Kind::ResourceConflict
        .with(format!("The operation cannot be performed at this time. An update is in progress for resource: {arn}"))
}

/// Functions that are being created or updated now: one change at a time.
#[derive(Clone, Default)]
pub(super) struct Changing(Arc<Mutex<HashSet<FunctionName>>>);

/// Ends the change when dropped.
pub(super) struct Change {
    names: Changing,
    name: FunctionName,
}

impl Changing {
    pub(super) fn enter(&self, name: &FunctionName) -> Option<Change> {
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        fresh.then(|| Change { names: self.clone(), name: name.clone() })
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.names.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
