//! Which function a request means: a name or an ARN out of the path, with its qualifier.

use crate::config::Config;
use crate::function::FunctionName;

use super::error::{ApiError, Kind};
use super::validation::Validation;

/// The only version so far.
pub const LATEST: &str = "$LATEST";

/// Lambda's own words for the form of a name, as its messages quote it.
const PATTERN: &str = r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?";
/// The same at creation, where no dot is allowed.
const PATTERN_CREATE: &str = r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?";
const QUALIFIER_PATTERN: &str = r"(|[a-zA-Z0-9$_-]+)";

/// Longest forms: at creation and everywhere else.
const MAX_CREATE: usize = 140;
const MAX_OTHER: usize = 170;
const MAX_QUALIFIER: usize = 128;

/// How ARNs of this instance begin.
#[derive(Clone, Debug)]
pub struct Home {
    pub region: String,
    pub account: String,
}

impl Home {
    pub fn new(config: &Config) -> Self {
        Self { region: config.region.clone(), account: config.account.clone() }
    }

    /// `arn:aws:lambda:<region>:<account>:function:<name>`
    pub fn arn(&self, name: &str) -> String {
        format!("arn:aws:lambda:{}:{}:function:{name}", self.region, self.account)
    }
}

/// A function as a request names it. The name is well formed; whether there is such a function is asked later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: FunctionName,
    pub qualifier: Option<String>,
}

impl Target {
    /// Out of a path's segment (already percent-decoded) and the query's `Qualifier`.
    pub fn parse(text: &str, query: Option<&str>, home: &Home) -> Result<Self, ApiError> {
        let parts = Parts::split(text, PATTERN, MAX_OTHER)?;
        if let Some(query) = query {
            check_qualifier(query)?;
        }
        if parts.qualifier.zip(query).is_some_and(|(derived, given)| derived != given) {
            return Err(Kind::InvalidParameterValue
                .with("The derived qualifier from the function name does not match the specified qualifier."));
        }
        let qualifier = parts.qualifier.or(query).map(str::to_owned);
        let name = parts.name_at(home)?;
        // The pattern lets dots and long names through; no function can be called so.
        let name =
            FunctionName::parse(name).map_err(|_| ApiError::no_function(&qualified(home.arn(name), qualifier.as_deref())))?;
        Ok(Self { name, qualifier })
    }

    /// Out of the body of CreateFunction. `Err` holds the constraint that the text fails, or a whole error.
    pub fn parse_new(text: &str, home: &Home) -> Result<FunctionName, NewNameError> {
        let pattern = || NewNameError::Constraint(format!("Member must satisfy regular expression pattern: {PATTERN_CREATE}"));
        let parts = Parts::split(text, PATTERN_CREATE, MAX_CREATE).map_err(|error| match error.kind {
            Kind::Validation if text.is_empty() => {
                NewNameError::Constraint("Member must have length greater than or equal to 1".into())
            }
            Kind::Validation if text.len() > MAX_CREATE => {
                NewNameError::Constraint(format!("Member must have length less than or equal to {MAX_CREATE}"))
            }
            _ => pattern(),
        })?;
        // The pattern lets a qualifier through, and Lambda does not: no version can be created.
        if parts.qualifier.is_some() {
            return Err(pattern());
        }
        if let Some(account) = parts.account.filter(|account| *account != home.account) {
            let why = format!("not authorized to create a function in account {account}: this is account {}", home.account);
            return Err(NewNameError::Whole(Kind::AccessDenied.with(why)));
        }
        let name = parts.name_at(home).map_err(NewNameError::Whole)?;
        // In the model's words and not by the model: Lambda's own error, without the others.
        FunctionName::parse(name).map_err(|error| {
            let failed = Validation::only("functionName", name, error);
            NewNameError::Whole(Kind::InvalidParameterValue.with(failed.message))
        })
    }

    pub fn arn(&self, home: &Home) -> String {
        home.arn(self.name.as_str())
    }

    /// As the caller named it: qualified only when the request was.
    pub fn arn_as_asked(&self, home: &Home) -> String {
        qualified(self.arn(home), self.qualifier.as_deref())
    }

    /// As a missing function is reported to its invoker: always qualified.
    pub fn arn_resolved(&self, home: &Home) -> String {
        qualified(self.arn(home), Some(self.qualifier.as_deref().unwrap_or(LATEST)))
    }

    /// Whether the qualifier, if any, names a version that there is.
    pub fn is_latest(&self) -> bool {
        self.qualifier.as_deref().is_none_or(|qualifier| qualifier == LATEST)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum NewNameError {
    /// Belongs among the other failed constraints of the request.
    Constraint(String),
    Whole(ApiError),
}

pub fn qualified(arn: String, qualifier: Option<&str>) -> String {
    match qualifier {
        Some(qualifier) => format!("{arn}:{qualifier}"),
        None => arn,
    }
}

fn check_qualifier(text: &str) -> Result<(), ApiError> {
    let constraint = if text.is_empty() {
        "Member must have length greater than or equal to 1".to_owned()
    } else if text.len() > MAX_QUALIFIER {
        format!("Member must have length less than or equal to {MAX_QUALIFIER}")
    } else if !text.bytes().all(|b| word(b) || b == b'$') {
        format!("Member must satisfy regular expression pattern: {QUALIFIER_PATTERN}")
    } else {
        return Ok(());
    };
    Err(Validation::only("qualifier", text, constraint))
}

/// The pieces of the pattern.
#[derive(Debug)]
struct Parts<'a> {
    region: Option<&'a str>,
    account: Option<&'a str>,
    name: &'a str,
    qualifier: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str, pattern: &str, max: usize) -> Result<Self, ApiError> {
        if text.len() > max {
            let constraint = format!("Member must have length less than or equal to {max}");
            return Err(Validation::only("functionName", text, constraint));
        }
        Self::matched(text, pattern == PATTERN).ok_or_else(|| {
            Validation::only("functionName", text, format!("Member must satisfy regular expression pattern: {pattern}"))
        })
    }

    /// The pattern's groups from left to right; each but the name may be missing.
    fn matched(text: &'a str, dots: bool) -> Option<Self> {
        let mut rest = text.split(':').collect::<Vec<_>>();
        if rest.first() == Some(&"arn") {
            let partition = rest.get(1)?;
            let known = partition.is_empty()
                || (partition.starts_with("aws") && partition.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-'));
            if !known || rest.get(2) != Some(&"lambda") {
                return None;
            }
            rest.drain(..3);
        }
        // A part that may be missing is taken only while something is left to be the name.
        let mut take = |fits: fn(&str) -> bool| {
            if rest.len() > 1 && fits(rest[0]) { Some(rest.remove(0)) } else { None }
        };
        let region = take(is_region);
        let account = take(|part| part.len() == 12 && part.bytes().all(|b| b.is_ascii_digit()));
        take(|part| part == "function");
        let (name, qualifier) = match rest[..] {
            [name] => (name, None),
            [name, qualifier] => (name, Some(qualifier)),
            _ => return None,
        };
        let good_name = !name.is_empty() && name.bytes().all(|b| word(b) || (dots && b == b'.'));
        let good_qualifier = qualifier.is_none_or(|qualifier| {
            qualifier == LATEST || qualifier == "$LATEST.PUBLISHED" || (!qualifier.is_empty() && qualifier.bytes().all(word))
        });
        (good_name && good_qualifier).then_some(Self { region, account, name, qualifier })
    }

    /// The name, if region and account are ours.
    fn name_at(&self, home: &Home) -> Result<&'a str, ApiError> {
        if let Some(region) = self.region.filter(|region| *region != home.region) {
            return Err(Kind::ResourceNotFound
                .with(format!("Functions from '{region}' are not reachable in this region ('{}')", home.region)));
        }
        match self.account.filter(|account| *account != home.account) {
            Some(account) => {
                let foreign = Home { region: home.region.clone(), account: account.to_owned() };
                Err(ApiError::no_function(&qualified(foreign.arn(self.name), self.qualifier)))
            }
            None => Ok(self.name),
        }
    }
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// `us-east-1`, `us-gov-west-1`, `eusc-de-east-1`: two letters first, one digit last, words between.
pub(super) fn is_region(part: &str) -> bool {
    let part = part.strip_prefix("eusc-").unwrap_or(part);
    let words: Vec<&str> = part.split('-').collect();
    let letters = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
    match words[..] {
        [country, ref middle @ .., number] => {
            country.len() == 2
                && letters(country)
                && (1..=2).contains(&middle.len())
                && middle.iter().all(|word| letters(word))
                && number.len() == 1
                && number.as_bytes()[0].is_ascii_digit()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        Home { region: "us-east-1".into(), account: "000000000000".into() }
    }

    fn parse(text: &str, query: Option<&str>) -> Result<(String, Option<String>), Kind> {
        Target::parse(text, query, &home()).map(|target| (target.name.to_string(), target.qualifier)).map_err(|error| error.kind)
    }

    #[test]
    fn every_form_of_a_name_is_understood() {
        for text in [
            "f",
            "function:f",
            "000000000000:function:f",
            "000000000000:f",
            "us-east-1:000000000000:function:f",
            "arn:aws:lambda:us-east-1:000000000000:function:f",
            "arn:aws-cn:lambda:us-east-1:000000000000:function:f",
        ] {
            assert_eq!(parse(text, None), Ok(("f".into(), None)), "{text}");
            assert_eq!(parse(&format!("{text}:$LATEST"), None), Ok(("f".into(), Some("$LATEST".into()))), "{text}");
        }
        // A name that looks like one of the other parts is still a name.
        assert_eq!(parse("function", None), Ok(("function".into(), None)));
        assert_eq!(parse("123456789012", None), Ok(("123456789012".into(), None)));
    }

    #[test]
    fn what_is_no_name_fails_the_pattern() {
        for text in
            ["", "a b", "a/b", "a:b:c:d", "arn:aws:s3:::x", "arn:gcp:lambda:us-east-1:000000000000:function:f", "f:", "ä", "../f"]
        {
            assert_eq!(parse(text, None), Err(Kind::Validation), "{text:?}");
        }
        assert_eq!(parse(&"x".repeat(171), None), Err(Kind::Validation));
    }

    #[test]
    fn names_that_no_function_can_have_are_not_found() {
        for text in ["a.b", "x".repeat(65).as_str(), "111111111111:function:f"] {
            assert_eq!(parse(text, None), Err(Kind::ResourceNotFound), "{text}");
        }
    }

    #[test]
    fn another_region_is_not_reachable() {
        let error = Target::parse("arn:aws:lambda:eu-west-1:000000000000:function:f", None, &home()).unwrap_err();
        assert_eq!(
            error,
            Kind::ResourceNotFound.with("Functions from 'eu-west-1' are not reachable in this region ('us-east-1')")
        );
    }

    #[test]
    fn two_qualifiers_must_agree() {
        assert_eq!(parse("f:1", Some("2")), Err(Kind::InvalidParameterValue));
        assert_eq!(parse("f:1", Some("1")), Ok(("f".into(), Some("1".into()))));
        assert_eq!(parse("f", Some("a b")), Err(Kind::Validation));
    }

    #[test]
    fn a_new_name_fails_by_the_constraint_it_breaks() {
        let constraint = |text: &str| match Target::parse_new(text, &home()) {
            Err(NewNameError::Constraint(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(constraint(&"x".repeat(141)), "Member must have length less than or equal to 140");
        for text in ["a.b", "f:1", "f:$LATEST", "arn:aws:lambda:us-east-1:000000000000:function:f:live"] {
            assert!(constraint(text).starts_with("Member must satisfy regular expression pattern: "), "{text}");
        }
        let whole = |text: &str| match Target::parse_new(text, &home()) {
            Err(NewNameError::Whole(error)) => error,
            other => panic!("{other:?}"),
        };
        let long = whole(&"x".repeat(65));
        assert!(
            long.message
                .ends_with(" at 'functionName' failed to satisfy constraint: Member must have length less than or equal to 64")
        );
        assert_eq!(long.kind, Kind::InvalidParameterValue);
        assert_eq!(whole("111111111111:function:f").kind, Kind::AccessDenied);
        assert_eq!(whole("arn:aws:lambda:eu-west-1:000000000000:function:f").kind, Kind::ResourceNotFound);
        assert_eq!(Target::parse_new("us-east-1:000000000000:function:f", &home()).unwrap().as_str(), "f");
    }
}
