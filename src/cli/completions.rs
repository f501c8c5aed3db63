//! `kiln completions bash|zsh|fish`: what a shell needs to complete kiln's words, and the names and ids that kilnd knows.
//!
//! The words are clap's; names and ids are asked of kilnd when somebody presses the key, as whoever presses it.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::args::{Arguments, CompletionShell};
use super::failure::Failure;
use super::output;

/// Around clap's function, which stays what it is.
const BASH: &str = r#"
_kiln_names() {
    local word="${COMP_WORDS[COMP_CWORD]}" verbs="" names="" n
    local -a run=()
    _kiln "$@"
    [[ "$word" == -* ]] && return 0
    for ((n = 1; n < COMP_CWORD; n++)); do
        case "${COMP_WORDS[n]}" in
            --run) run=(--run "${COMP_WORDS[++n]}") ;;
            -*) ;;
            *) verbs+=" ${COMP_WORDS[n]}" ;;
        esac
    done
    case "$verbs" in
        " container kill"* | " container recycle"*) names=$(kiln "${run[@]}" container list --quiet 2>/dev/null) ;;
        " invoke" | " logs" | " function get" | " function update" | " function delete" | " function drain" | \
            " function concurrency") names=$(kiln "${run[@]}" function list --quiet 2>/dev/null) ;;
        *) return 0 ;;
    esac
    COMPREPLY=($(compgen -W "$names" -- "$word"))
}
complete -F _kiln_names -o bashdefault -o default kiln
"#;

const ZSH: &str = r#"
_kiln_containers() { compadd -- ${(f)"$(kiln container list --quiet 2>/dev/null)"} }
_kiln_functions() { compadd -- ${(f)"$(kiln function list --quiet 2>/dev/null)"} }
"#;

const FISH: &str = r#"
complete -c kiln -n "__fish_seen_subcommand_from container; and __fish_seen_subcommand_from kill recycle" -f -a "(kiln container list --quiet 2>/dev/null)"
complete -c kiln -n "__fish_seen_subcommand_from function; and __fish_seen_subcommand_from concurrency delete drain get update" -f -a "(kiln function list --quiet 2>/dev/null)"
complete -c kiln -n "__fish_seen_subcommand_from invoke logs" -f -a "(kiln function list --quiet 2>/dev/null)"
"#;

pub fn execute(shell: CompletionShell) -> Result<(), Failure> {
    let words = |shell| {
        // Into memory first: the generator panics where it cannot write, and a reader may have had enough.
        let mut script = Vec::new();
        generate(shell, &mut Arguments::command(), "kiln", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    };
    let script = match shell {
        CompletionShell::Bash => words(Shell::Bash) + BASH,
        CompletionShell::Fish => words(Shell::Fish) + FISH,
        CompletionShell::Zsh => {
            let script = words(Shell::Zsh)
                .replace(":name -- Name or ARN:_default'", ":name -- Name or ARN:_kiln_functions'")
                .replace("as shown by kiln container list:_default'", "as shown by kiln container list:_kiln_containers'");
            // Before the end, which calls what was defined.
            let end = script.rfind("\nif [ \"$funcstack[1]\"").unwrap_or(script.len());
            format!("{}{ZSH}{}", &script[..end], &script[end..])
        }
    };
    output::print(script.as_bytes())
}
