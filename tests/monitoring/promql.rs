//! Reads PromQL: as much of it as our rules and panels use, and nothing that Prometheus would not.
//!
//! <https://prometheus.io/docs/prometheus/latest/querying/basics/>. There is no crate for it that promises to be built by our oldest
//! Rust.

/// What an expression asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    pub selectors: Vec<Selector>,
    /// Labels after `by`, `without`, `on` and `ignoring`.
    pub grouped: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub struct Selector {
    pub name: String,
    /// Label, operator, value.
    pub matchers: Vec<(String, String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Scalar,
    Instant,
    Range,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Number,
    Text(String),
    /// What stands in brackets.
    Span(String),
    Sign(&'static str),
}

const AGGREGATIONS: [&str; 7] = ["sum", "avg", "min", "max", "count", "topk", "bottomk"];
/// Name, and what its last argument is.
const FUNCTIONS: [(&str, Kind); 5] = [
    ("rate", Kind::Range),
    ("increase", Kind::Range),
    ("histogram_quantile", Kind::Instant),
    ("absent", Kind::Instant),
    ("clamp_min", Kind::Scalar),
];
/// By how loosely they bind.
const LEVELS: [&[&str]; 5] = [&["or"], &["and", "unless"], &["==", "!=", ">=", "<=", ">", "<"], &["+", "-"], &["*", "/", "%"]];
/// The longer ones first.
const SIGNS: [&str; 18] = ["==", "!=", ">=", "<=", "=~", "!~", "=", ">", "<", "+", "-", "*", "/", "%", "(", ")", "{", "}"];

pub fn parse(text: &str) -> Result<Parsed, String> {
    let mut reader = Reader { tokens: tokens(text)?, at: 0, found: Parsed::default() };
    if reader.level(0)? == Kind::Range {
        return Err("a range is no answer".into());
    }
    match reader.peek() {
        None => Ok(reader.found),
        Some(token) => Err(format!("{token:?} after the end")),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
            found.push(Token::Word(rest[..end].into()));
            end
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            rest[..end].parse::<f64>().map_err(|_| format!("{} is no number", &rest[..end]))?;
            found.push(Token::Number);
            end
        } else if first == '"' {
            let end = rest[1..].find('"').ok_or("a text does not end")?;
            found.push(Token::Text(rest[1..=end].into()));
            end + 2
        } else if first == '[' {
            let end = rest.find(']').ok_or("a range does not end")?;
            found.push(Token::Span(rest[1..end].into()));
            end + 1
        } else if first == ',' {
            found.push(Token::Sign(","));
            1
        } else {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign)).ok_or(format!("{first:?} means nothing"))?;
            found.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest[taken..].trim_start();
    }
    Ok(found)
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    found: Parsed,
}

impl Reader {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    /// Takes this sign or word, if it comes.
    fn takes(&mut self, wanted: &str) -> bool {
        let comes = match self.peek() {
            Some(Token::Sign(sign)) => *sign == wanted,
            Some(Token::Word(word)) => word == wanted,
            _ => false,
        };
        self.at += usize::from(comes);
        comes
    }

    fn must(&mut self, wanted: &str) -> Result<(), String> {
        if self.takes(wanted) { Ok(()) } else { Err(format!("expected {wanted:?}, found {:?}", self.peek())) }
    }

    fn level(&mut self, level: usize) -> Result<Kind, String> {
        let Some(operators) = LEVELS.get(level) else { return self.primary() };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = operators.iter().copied().find(|operator| self.takes(operator)) {
            self.takes("bool");
            for matching in ["on", "ignoring"] {
                if self.takes(matching) {
                    self.labels()?;
                }
            }
            let right = self.level(level + 1)?;
            if left == Kind::Range || right == Kind::Range {
                return Err(format!("{operator} takes no range"));
            }
            left = if left == Kind::Scalar { right } else { left };
        }
        Ok(left)
    }

    fn primary(&mut self) -> Result<Kind, String> {
        match self.next() {
            Some(Token::Number) => Ok(Kind::Scalar),
            Some(Token::Sign("-")) => self.primary(),
            Some(Token::Sign("(")) => {
                let kind = self.level(0)?;
                self.must(")")?;
                Ok(kind)
            }
            Some(Token::Word(word)) => self.word(word),
            other => Err(format!("expected a value, found {other:?}")),
        }
    }

    fn word(&mut self, word: String) -> Result<Kind, String> {
        if AGGREGATIONS.contains(&word.as_str()) {
            let before = self.grouping()?;
            if self.arguments()? != Kind::Instant {
                return Err(format!("{word} wants an instant"));
            }
            if !before {
                self.grouping()?;
            }
            return Ok(Kind::Instant);
        }
        if let Some((_, wanted)) = FUNCTIONS.into_iter().find(|(name, _)| *name == word) {
            if self.arguments()? != wanted {
                return Err(format!("{word} wants {}", if wanted == Kind::Range { "a range" } else { "no range" }));
            }
            return Ok(Kind::Instant);
        }
        if self.peek() == Some(&Token::Sign("(")) {
            return Err(format!("there is no function {word}"));
        }
        let matchers = if self.takes("{") { self.matchers()? } else { Vec::new() };
        self.found.selectors.push(Selector { name: word, matchers });
        match self.peek() {
            Some(Token::Span(span)) => {
                let (number, unit) = span.split_at(span.len().saturating_sub(1));
                if span != "$__rate_interval" && (number.parse::<u32>().is_err() || !["s", "m", "h", "d", "w"].contains(&unit)) {
                    return Err(format!("{span:?} is no duration"));
                }
                self.at += 1;
                Ok(Kind::Range)
            }
            _ => Ok(Kind::Instant),
        }
    }

    /// `by (a, b)`, if it comes.
    fn grouping(&mut self) -> Result<bool, String> {
        let comes = self.takes("by") || self.takes("without");
        if comes {
            self.labels()?;
        }
        Ok(comes)
    }

    fn labels(&mut self) -> Result<(), String> {
        self.must("(")?;
        while !self.takes(")") {
            match self.next() {
                Some(Token::Word(label)) => self.found.grouped.push(label),
                other => return Err(format!("expected a label, found {other:?}")),
            }
            if !self.takes(",") {
                return self.must(")");
            }
        }
        Ok(())
    }

    /// What the last one is.
    fn arguments(&mut self) -> Result<Kind, String> {
        self.must("(")?;
        loop {
            let kind = self.level(0)?;
            if !self.takes(",") {
                self.must(")")?;
                return Ok(kind);
            }
        }
    }

    fn matchers(&mut self) -> Result<Vec<(String, String, String)>, String> {
        let mut found = Vec::new();
        while !self.takes("}") {
            let (label, operator, value) = (self.next(), self.next(), self.next());
            match (label, operator, value) {
                (Some(Token::Word(label)), Some(Token::Sign(sign @ ("=" | "!=" | "=~" | "!~"))), Some(Token::Text(value))) => {
                    found.push((label, sign.to_owned(), value));
                }
                other => return Err(format!("expected label=\"value\", found {other:?}")),
            }
            if !self.takes(",") {
                self.must("}")?;
                break;
            }
        }
        Ok(found)
    }
}
