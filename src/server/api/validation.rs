//! Failed constraints, collected and told in the grammar of Lambda's model:
//! `2 validation errors detected: Value 'x' at 'field' failed to satisfy constraint: …; Value …`.

use std::fmt::Display;

use super::error::{ApiError, Kind};

/// Most of a caller's own text that goes back in a message.
const MAX_ECHO: usize = 512;

#[derive(Default)]
pub struct Validation {
    failures: Vec<String>,
}

impl Validation {
    pub fn only(field: &str, value: impl Display, constraint: impl Display) -> ApiError {
        let mut validation = Self::default();
        validation.fail(field, value, constraint);
        validation.into_error()
    }

    pub fn fail(&mut self, field: &str, value: impl Display, constraint: impl Display) {
        let value: String = value.to_string().chars().take(MAX_ECHO).collect();
        self.failures.push(format!("Value '{value}' at '{field}' failed to satisfy constraint: {constraint}"));
    }

    /// Of a member that the model calls sensitive: its value is not told.
    pub fn secret(&mut self, field: &str, constraint: impl Display) {
        self.failures.push(format!("Value at '{field}' failed to satisfy constraint: {constraint}"));
    }

    /// A required member is missing; a missing value has no quotes.
    pub fn null(&mut self, field: &str) {
        self.failures.push(format!("Value null at '{field}' failed to satisfy constraint: Member must not be null"));
    }

    pub fn missing(field: &str) -> ApiError {
        let mut validation = Self::default();
        validation.null(field);
        validation.into_error()
    }

    pub fn finish(self) -> Result<(), ApiError> {
        if self.failures.is_empty() { Ok(()) } else { Err(self.into_error()) }
    }

    fn into_error(self) -> ApiError {
        let count = self.failures.len();
        let errors = if count == 1 { "error" } else { "errors" };
        Kind::Validation.with(format!("{count} validation {errors} detected: {}", self.failures.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_failures_are_told_in_one_sentence() {
        let mut validation = Validation::default();
        validation.fail("timeout", 0, "Member must have value greater than or equal to 1");
        validation.null("role");
        assert_eq!(
            validation.finish().unwrap_err().message,
            "2 validation errors detected: Value '0' at 'timeout' failed to satisfy constraint: Member must have value greater \
             than or equal to 1; Value null at 'role' failed to satisfy constraint: Member must not be null"
        );
    }
}
