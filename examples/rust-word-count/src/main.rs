//! Counts the words of a text, and names the most frequent ones, in any script.

use std::collections::HashMap;

use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn};
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

#[derive(Deserialize)]
struct Request {
    text: String,
    #[serde(default = "three")]
    top: usize,
}

fn three() -> usize {
    3
}

#[derive(Debug, PartialEq, Serialize)]
struct Count {
    lines: usize,
    words: usize,
    letters: usize,
    most_frequent: Vec<(String, usize)>,
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the text has no words")]
    NoWords,
    #[error("top must be at most 100, not {0}")]
    TooMany(usize),
}

/// What the caller sees as errorType and errorMessage.
impl From<Refusal> for Diagnostic {
    fn from(refusal: Refusal) -> Self {
        let error_type = match refusal {
            Refusal::NoWords => "NoWords",
            Refusal::TooMany(_) => "TooMany",
        };
        Self { error_type: error_type.into(), error_message: refusal.to_string() }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(handler)).await
}

async fn handler(event: LambdaEvent<Request>) -> Result<Count, Refusal> {
    let counted = count(&event.payload)?;
    println!("{} words", counted.words);
    Ok(counted)
}

fn count(request: &Request) -> Result<Count, Refusal> {
    if request.top > 100 {
        return Err(Refusal::TooMany(request.top));
    }
    let words: Vec<String> = request.text.unicode_words().map(str::to_lowercase).collect();
    if words.is_empty() {
        return Err(Refusal::NoWords);
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for word in &words {
        *seen.entry(word).or_default() += 1;
    }
    let mut most_frequent: Vec<(String, usize)> = seen.into_iter().map(|(word, times)| (word.to_owned(), times)).collect();
    most_frequent.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    most_frequent.truncate(request.top);
    Ok(Count {
        lines: request.text.lines().count(),
        letters: words.iter().map(|word| word.graphemes(true).count()).sum(),
        words: words.len(),
        most_frequent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_whatever_their_case() {
        let counted = count(&Request { text: "Die Würde, die\nWÜRDE".into(), top: 1 }).unwrap();
        assert_eq!((counted.lines, counted.words, counted.letters), (2, 4, 16));
        assert_eq!(counted.most_frequent, [("die".to_owned(), 2)]);
    }

    #[test]
    fn a_text_without_words_is_refused() {
        assert!(count(&Request { text: "… !".into(), top: 3 }).is_err());
    }
}
