//! `cargo xtask instructions`: instructions of the hot path's pieces, counted by Callgrind and held against the committed
//! figures. A count does not depend on what else the machine does, so a few per cent can be seen.
//!
//! `router-agent/benches/instructions.rs` has the pieces, `instructions.figures` beside it the figures and the compiler that
//! they are of: another one makes other code, so there nothing is compared, and that is said. A figure that moves by more
//! than 3 % fails, better ones too: `--update` writes what was counted, and docs/performance.md says why it moved.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, bail, ensure};

use crate::{
    process::{command, output},
    workspace,
};

/// Of a figure.
const TOLERANCE: f64 = 0.03;
/// Instructions of all rounds of a piece together, or a little more.
const ROUNDS_WORTH: u64 = 20_000_000;

/// What was counted, by piece, and the compiler.
#[derive(Debug, PartialEq)]
struct Figures {
    compiler: String,
    pieces: BTreeMap<String, f64>,
}

impl Figures {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let compiler = lines.next().context("no compiler")?.to_owned();
        let piece = |line: &str| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.trim().parse().ok()?))
        };
        let pieces = lines
            .map(|line| piece(line).with_context(|| format!("not a figure: {line}")))
            .collect::<Result<_, _>>()?;
        Ok(Self { compiler, pieces })
    }

    fn text(&self) -> String {
        let mut text = "# Instructions of a round, by `cargo xtask instructions --update`.\n".to_owned();
        let _ = writeln!(text, "{}", self.compiler);
        for (name, count) in &self.pieces {
            let _ = writeln!(text, "{name:<32} {count:.0}");
        }
        text
    }
}

fn file() -> PathBuf {
    workspace::root().join("router-agent/benches/instructions.figures")
}

/// Counts, and compares or writes.
pub(crate) fn main(update: bool) -> anyhow::Result<()> {
    let compiler = output(command("rustc").arg("-V"))?.trim().to_owned();
    let known = fs::read_to_string(file()).ok().map(|text| Figures::parse(&text)).transpose()?;
    if !update {
        let Some(known) = &known else { bail!("{} is not there: --update writes it", file().display()) };
        if known.compiler != compiler {
            println!("skipped: the figures are of {}, and this is {compiler}", known.compiler);
            return Ok(());
        }
    }
    if output(command("valgrind").arg("--version")).is_err() {
        if update {
            bail!("valgrind is not installed");
        }
        println!("skipped: valgrind is not installed (apt install valgrind)");
        return Ok(());
    }
    let bench = build()?;
    let mut pieces = BTreeMap::new();
    for name in output(&mut command(&bench))?.lines() {
        pieces.insert(name.to_owned(), per_round(&bench, name)?);
    }
    let counted = Figures { compiler, pieces };
    let known = known.map(|known| known.pieces).unwrap_or_default();
    let mut moved = Vec::new();
    for (name, count) in &counted.pieces {
        let change = known.get(name).map(|before| count / before - 1.0);
        let shown = change.map_or("new".to_owned(), |change| format!("{:+.1} %", change * 100.0));
        println!("{name:<32} {count:>12.0}  {shown}");
        if change.is_none_or(|change| change.abs() > TOLERANCE) {
            moved.push(name.as_str());
        }
    }
    moved.extend(known.keys().filter(|name| !counted.pieces.contains_key(*name)).map(String::as_str));
    if update {
        return fs::write(file(), counted.text()).context("writing the figures");
    }
    ensure!(
        moved.is_empty(),
        "moved by more than {:.0} %: {}. If that is right: cargo xtask instructions --update, and say why in \
         docs/performance.md",
        TOLERANCE * 100.0,
        moved.join(", ")
    );
    Ok(())
}

/// Builds the pieces; the program's path.
fn build() -> anyhow::Result<String> {
    let mut cargo = command("cargo");
    cargo.args(["bench", "--quiet", "--no-run", "--profile", "instructions", "--message-format", "json"]);
    let messages = output(cargo.args(["--package", "router-agent", "--bench", "instructions"]))?;
    // The product's own binary is built, too.
    let mut built = messages.lines().filter(|line| line.contains("\"name\":\"instructions\""));
    let path =
        built.find_map(|line| Some(line.split_once("\"executable\":\"")?.1.split_once('"')?.0.to_owned()));
    path.context("cargo names no program that it has built")
}

/// Instructions of one round: what three times as many rounds take more.
fn per_round(bench: &str, name: &str) -> anyhow::Result<f64> {
    let one = (count(bench, name, 3)? - count(bench, name, 1)?) / 2;
    let rounds = (ROUNDS_WORTH / one.max(1)).clamp(10, 100_000);
    let (few, many) = (count(bench, name, rounds)?, count(bench, name, 3 * rounds)?);
    Ok((many - few) as f64 / (2 * rounds) as f64)
}

fn count(bench: &str, name: &str, rounds: u64) -> anyhow::Result<u64> {
    let mut valgrind = std::process::Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", bench, name, &rounds.to_string()]);
    let run = valgrind.output().context("valgrind")?;
    let said = String::from_utf8_lossy(&run.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match collected {
        Some(count) if run.status.success() => Ok(count),
        _ => bail!("{name}: valgrind failed: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_they_were_written() {
        let pieces = [("parse_2_kb".to_owned(), 1234.0), ("decide".to_owned(), 56.0)].into();
        let figures = Figures { compiler: "rustc 1.95.0 (abc 2026-01-01)".to_owned(), pieces };
        assert_eq!(Figures::parse(&figures.text()).expect("as written"), figures);
        assert!(
            Figures::parse("# nothing\nrustc\nwrong\n").expect_err("one word").to_string().contains("wrong")
        );
    }
}
