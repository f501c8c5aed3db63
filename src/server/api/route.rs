//! Which operation a request asks for: method and path, taken apart once.

use hyper::{Method, Uri};

use super::error::{ApiError, Kind};
use super::layers::Filter;

/// An operation and what its path says. Texts are percent-decoded and otherwise as the caller wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    CreateFunction,
    ListFunctions {
        page: Page,
        version: Option<String>,
    },
    GetFunction(Named),
    GetFunctionConfiguration(Named),
    UpdateFunctionCode(Named),
    UpdateFunctionConfiguration(Named),
    DeleteFunction(Named),
    Invoke(Named),
    PutFunctionConcurrency(Named),
    GetFunctionConcurrency(Named),
    DeleteFunctionConcurrency(Named),
    PublishLayerVersion(String),
    GetLayerVersion {
        layer: String,
        version: String,
    },
    GetLayerVersionByArn(String),
    ListLayers(Filter, Page),
    ListLayerVersions(String, Filter, Page),
    DeleteLayerVersion {
        layer: String,
        version: String,
    },
    GetAccountSettings,
    ListVersionsByFunction(Named, Page),
    GetPolicy(Named),
    GetFunctionCodeSigningConfig(Named),
    /// By the ARN of what is tagged.
    ListTags(String),
    TagResource(String),
    UntagResource(String, Vec<String>),
    /// No operation of Lambda's: where GetFunction's `Code.Location` leads.
    DownloadCode(String),
}

/// Which part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub marker: Option<String>,
    pub max_items: Option<String>,
}

/// A function in the path, and the query's `Qualifier`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub function: String,
    pub qualifier: Option<String>,
}

impl Operation {
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, ApiError> {
        let path = uri.path().strip_suffix('/').unwrap_or(uri.path());
        let segments = path.split('/').skip(1).map(decode).collect::<Result<Vec<_>, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let query = |key: &str| query(uri, key);
        let named = |function: &str| Ok::<_, ApiError>(Named { function: function.to_owned(), qualifier: query("Qualifier")? });
        let filter =
            || Ok::<_, ApiError>(Filter { runtime: query("CompatibleRuntime")?, architecture: query("CompatibleArchitecture")? });
        let page = || Ok::<_, ApiError>(Page { marker: query("Marker")?, max_items: query("MaxItems")? });
        let operation = match (method.as_str(), &segments[..]) {
            ("POST", ["2015-03-31", "functions"]) => Self::CreateFunction,
            ("GET", ["2015-03-31", "functions"]) => Self::ListFunctions { page: page()?, version: query("FunctionVersion")? },
            ("GET", ["2015-03-31", "functions", name]) => Self::GetFunction(named(name)?),
            ("DELETE", ["2015-03-31", "functions", name]) => Self::DeleteFunction(named(name)?),
            ("GET", ["2015-03-31", "functions", name, "configuration"]) => Self::GetFunctionConfiguration(named(name)?),
            ("PUT", ["2015-03-31", "functions", name, "configuration"]) => Self::UpdateFunctionConfiguration(named(name)?),
            ("PUT", ["2015-03-31", "functions", name, "code"]) => Self::UpdateFunctionCode(named(name)?),
            ("POST", ["2015-03-31", "functions", name, "invocations"]) => Self::Invoke(named(name)?),
            ("PUT", ["2017-10-31", "functions", name, "concurrency"]) => Self::PutFunctionConcurrency(named(name)?),
            ("DELETE", ["2017-10-31", "functions", name, "concurrency"]) => Self::DeleteFunctionConcurrency(named(name)?),
            ("GET", ["2019-09-30", "functions", name, "concurrency"]) => Self::GetFunctionConcurrency(named(name)?),
            ("GET", ["2018-10-31", "layers"]) if query("find")?.as_deref() == Some("LayerVersion") => {
                Self::GetLayerVersionByArn(query("Arn")?.unwrap_or_default())
            }
            ("GET", ["2018-10-31", "layers"]) => Self::ListLayers(filter()?, page()?),
            ("POST", ["2018-10-31", "layers", layer, "versions"]) => Self::PublishLayerVersion((*layer).to_owned()),
            ("GET", ["2018-10-31", "layers", layer, "versions"]) => {
                Self::ListLayerVersions((*layer).to_owned(), filter()?, page()?)
            }
            ("GET", ["2018-10-31", "layers", layer, "versions", version]) => {
                Self::GetLayerVersion { layer: (*layer).to_owned(), version: (*version).to_owned() }
            }
            ("DELETE", ["2018-10-31", "layers", layer, "versions", version]) => {
                Self::DeleteLayerVersion { layer: (*layer).to_owned(), version: (*version).to_owned() }
            }
            ("GET", ["2015-03-31", "functions", name, "versions"]) => Self::ListVersionsByFunction(named(name)?, page()?),
            ("GET", ["2015-03-31", "functions", name, "policy"]) => Self::GetPolicy(named(name)?),
            ("GET", ["2020-06-30", "functions", name, "code-signing-config"]) => Self::GetFunctionCodeSigningConfig(named(name)?),
            ("GET", ["2016-08-19", "account-settings"]) => Self::GetAccountSettings,
            ("GET", ["2017-03-31", "tags", resource]) => Self::ListTags((*resource).to_owned()),
            ("POST", ["2017-03-31", "tags", resource]) => Self::TagResource((*resource).to_owned()),
            ("DELETE", ["2017-03-31", "tags", resource]) => Self::UntagResource((*resource).to_owned(), queries(uri, "tagKeys")?),
            ("GET", ["kiln", "code", file]) => Self::DownloadCode((*file).to_owned()),
            (
                _,
                ["2017-10-31" | "2019-09-30", "functions", _, "concurrency"]
                | ["2018-10-31", "layers"]
                | ["2018-10-31", "layers", _, "versions"]
                | ["2018-10-31", "layers", _, "versions", _]
                | ["2015-03-31", "functions"]
                | ["2015-03-31", "functions", _]
                | ["2015-03-31", "functions", _, "configuration" | "code" | "invocations"]
                | ["2016-08-19", "account-settings"]
                | ["2017-03-31", "tags", _],
            ) => return Err(Kind::MethodNotAllowed.with(format!("{method} is not an operation on {path}"))),
            _ => return Err(Kind::UnknownOperation.with(format!("Kiln has no operation {method} {path}"))),
        };
        Ok(operation)
    }

    /// As IAM spells it, for who may not.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateFunction => "CreateFunction",
            Self::ListFunctions { .. } => "ListFunctions",
            Self::GetFunction(_) => "GetFunction",
            Self::GetFunctionConfiguration(_) => "GetFunctionConfiguration",
            Self::UpdateFunctionCode(_) => "UpdateFunctionCode",
            Self::UpdateFunctionConfiguration(_) => "UpdateFunctionConfiguration",
            Self::DeleteFunction(_) => "DeleteFunction",
            Self::Invoke(_) => "InvokeFunction",
            Self::PutFunctionConcurrency(_) => "PutFunctionConcurrency",
            Self::GetFunctionConcurrency(_) => "GetFunctionConcurrency",
            Self::DeleteFunctionConcurrency(_) => "DeleteFunctionConcurrency",
            Self::PublishLayerVersion(_) => "PublishLayerVersion",
            Self::GetLayerVersion { .. } | Self::GetLayerVersionByArn(_) => "GetLayerVersion",
            Self::ListLayers(..) => "ListLayers",
            Self::ListLayerVersions(..) => "ListLayerVersions",
            Self::DeleteLayerVersion { .. } => "DeleteLayerVersion",
            Self::GetAccountSettings => "GetAccountSettings",
            Self::ListVersionsByFunction(..) => "ListVersionsByFunction",
            Self::GetPolicy(_) => "GetPolicy",
            Self::GetFunctionCodeSigningConfig(_) => "GetFunctionCodeSigningConfig",
            Self::ListTags(_) => "ListTags",
            Self::TagResource(_) => "TagResource",
            Self::UntagResource(..) => "UntagResource",
            // What it shows is GetFunction's.
            Self::DownloadCode(_) => "GetFunction",
        }
    }
}

/// The first value of a key in the query.
fn query(uri: &Uri, key: &str) -> Result<Option<String>, ApiError> {
    Ok(queries(uri, key)?.into_iter().next())
}

/// All values of a key in the query.
fn queries(uri: &Uri, key: &str) -> Result<Vec<String>, ApiError> {
    let mut values = Vec::new();
    for pair in uri.query().unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name)? == key {
            // In a query `+` is a space.
            values.push(decode(&value.replace('+', " "))?);
        }
    }
    Ok(values)
}

/// Decodes `%XX` once. What does not decode to UTF-8 names nothing of ours.
fn decode(text: &str) -> Result<String, ApiError> {
    let wrong = || Kind::InvalidParameterValue.with("The path or the query is not percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(wrong);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push((high << 4 | low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> Result<Operation, Kind> {
        Operation::parse(&method.parse().unwrap(), &uri.parse().unwrap()).map_err(|error| error.kind)
    }

    fn named(function: &str, qualifier: Option<&str>) -> Named {
        Named { function: function.into(), qualifier: qualifier.map(Into::into) }
    }

    #[test]
    fn an_arn_in_the_path_is_decoded_once() {
        assert_eq!(
            parse("POST", "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af/invocations"),
            Ok(Operation::Invoke(named("arn:aws:lambda:us-east-1:000000000000:function:f", None)))
        );
        assert_eq!(parse("GET", "/2015-03-31/functions/a%252Fb"), Ok(Operation::GetFunction(named("a%2Fb", None))));
        assert_eq!(
            parse("GET", "/2015-03-31/functions/f?Qualifier=%24LATEST&x=1"),
            Ok(Operation::GetFunction(named("f", Some("$LATEST"))))
        );
    }

    #[test]
    fn a_slash_in_a_name_makes_no_other_operation() {
        assert_eq!(
            parse("POST", "/2015-03-31/functions/a%2Finvocations"),
            Err(Kind::MethodNotAllowed),
            "the decoded slash stays within its segment"
        );
    }

    #[test]
    fn what_is_no_operation_is_told_from_a_wrong_method() {
        assert_eq!(parse("PATCH", "/2015-03-31/functions/f"), Err(Kind::MethodNotAllowed));
        assert_eq!(parse("GET", "/2015-03-31/functions/f/invocations"), Err(Kind::MethodNotAllowed));
        for path in ["/", "/2015-03-31", "/2016-03-31/functions", "/2015-03-31/functions/f/g", "//2015-03-31/functions"] {
            assert_eq!(parse("GET", path), Err(Kind::UnknownOperation), "{path}");
        }
    }

    #[test]
    fn broken_percent_codes_are_refused() {
        for path in
            ["/2015-03-31/functions/%", "/2015-03-31/functions/%4", "/2015-03-31/functions/%zz", "/2015-03-31/functions/%ff"]
        {
            assert_eq!(parse("GET", path), Err(Kind::InvalidParameterValue), "{path}");
        }
    }
}
