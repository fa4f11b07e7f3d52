//! What a run of the relay benchmark tells: tables in Markdown, the aims and how far they are met, everything as JSON.

use std::fmt;

use serde::Serialize;

use super::{
    figures::{FOREIGN_CORES_MAX, Trial},
    load::{Load, Workload},
    path::{Path, version},
};

/// Where it was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Setup {
    kernel: String,
    cpu: String,
    cores: u32,
    pub(super) load_average: [f64; 3],
    nginx: Option<String>,
    haproxy: Option<String>,
}

impl Setup {
    pub(super) fn new() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model =
            info.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
        let load = read("/proc/loadavg");
        let mut averages = load.split(' ').map(|word| word.parse().unwrap_or(0.0));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.unwrap_or("unknown").to_owned(),
            cores: super::cpu::cores(),
            load_average: std::array::from_fn(|_| averages.next().unwrap_or(0.0)),
            nginx: version("nginx", "-v"),
            haproxy: version("haproxy", "-v"),
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpu, cores, load_average: [one, five, fifteen], nginx, haproxy } = self;
        writeln!(f, "Linux {kernel}, {cores} cores of {cpu}, load average {one:.2} {five:.2} {fifteen:.2}")?;
        let version = |version: &Option<String>| version.clone().unwrap_or("not installed".to_owned());
        writeln!(f, "nginx: {}; HAProxy: {}", version(nginx), version(haproxy))
    }
}

/// A whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) setup: Setup,
    pub(super) seconds: f64,
    pub(super) trials: Vec<Trial>,
    pub(super) unavailable: Vec<(String, String)>,
    pub(super) failures: Vec<String>,
}

/// One trial in a line, while the run goes on.
pub(super) fn line(trial: &Trial) -> String {
    let Trial { round, workload, path, units_per_s, process_us, machine_us, foreign_cores, .. } = trial;
    let unit = workload.unit();
    let late = trial.lateness_p50_us.map_or(String::new(), |p50| {
        format!(", late {p50:.1} / {:.1} µs", trial.lateness_p99_us.unwrap_or(f64::NAN))
    });
    let share =
        trial.relayed_share.map_or(String::new(), |share| format!(", {:.0} % by the kernel", share * 100.0));
    format!(
        "round {round} {workload:?} {}: {units_per_s:.0} {unit}/s, process {process_us:.2} µs, machine \
         {machine_us:.2} µs{late}{share}, foreign {foreign_cores:.2} cores",
        path.label()
    )
}

/// Median, smallest and largest over rounds.
#[derive(Debug, Clone, Copy)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

/// A figure as a cell: as many digits as it is worth.
fn cell(spread: Option<Spread>) -> String {
    let number = |value: f64| match value.abs() {
        value_abs if value_abs >= 100.0 => format!("{value:.0}"),
        value_abs if value_abs >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    spread.map_or("–".to_owned(), |Spread { median, min, max }| {
        format!("{} ({}–{})", number(median), number(min), number(max))
    })
}

impl Report {
    fn of(&self, workload: Workload, path: Path) -> impl Iterator<Item = &Trial> {
        self.trials.iter().filter(move |trial| trial.workload == workload && trial.path == path)
    }

    fn figure(
        &self,
        workload: Workload,
        path: Path,
        figure: impl Fn(&Trial) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.of(workload, path).filter_map(figure).collect())
    }

    /// Against the same round's direct trial.
    fn beyond_direct(&self, workload: Workload, path: Path) -> Option<Spread> {
        self.figure(workload, path, |trial| {
            let direct = self.of(workload, Path::Direct).find(|direct| direct.round == trial.round)?;
            Some(trial.machine_us - direct.machine_us)
        })
    }

    fn process(&self, workload: Workload, path: Path) -> Option<Spread> {
        self.figure(workload, path, |trial| Some(trial.process_us))
    }

    fn table(&self, f: &mut fmt::Formatter<'_>, workload: Workload) -> fmt::Result {
        let unit = workload.unit();
        writeln!(f, "\n### {}\n", Load::standard(workload).describe())?;
        let late = if workload.has_events() { " lateness p50, µs | p99, µs |" } else { "" };
        writeln!(f, "| | {unit}/s | proxy CPU, µs/{unit} | machine CPU beyond direct, µs/{unit} |{late}")?;
        writeln!(f, "|---|---|---|---|{}", if late.is_empty() { "" } else { "---|---|" })?;
        for path in Path::ALL {
            let Some(rate) = self.figure(workload, path, |trial| Some(trial.units_per_s)) else { continue };
            let is_proxy = path != Path::Direct;
            let process = cell(self.process(workload, path).filter(|_| is_proxy));
            let beyond = if is_proxy {
                cell(self.beyond_direct(workload, path))
            } else {
                format!("(all of it: {})", cell(self.figure(workload, path, |trial| Some(trial.machine_us))))
            };
            write!(f, "| {} | {} | {process} | {beyond} |", path.label(), cell(Some(rate)))?;
            if workload.has_events() {
                let p50 = cell(self.figure(workload, path, |trial| trial.lateness_p50_us));
                let p99 = cell(self.figure(workload, path, |trial| trial.lateness_p99_us));
                write!(f, " {p50} | {p99} |")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    /// Each aim with what was measured; nothing where a part of it was not.
    fn aims(&self) -> Vec<(String, bool)> {
        let mut aims = Vec::new();
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
        let paced = Workload::Paced;
        let beyond = |path| median(self.beyond_direct(paced, path));
        if let (Some(ours), Some(theirs)) = (beyond(Path::Bypass), beyond(Path::Nginx)) {
            let text = format!(
                "bypass ≤ 0.25 × nginx's machine CPU per event beyond direct: {ours:.2} µs, nginx {theirs:.2} µs, {:.3} ×",
                ours / theirs
            );
            aims.push((text, ours <= 0.25 * theirs));
        }
        let p50 = |path| median(self.figure(paced, path, |trial| trial.lateness_p50_us));
        if let (Some(ours), Some(direct)) = (p50(Path::Bypass), p50(Path::Direct)) {
            let text = format!(
                "bypass: lateness p50 ≤ 1.1 × direct: {ours:.1} µs, direct {direct:.1} µs, {:.2} ×",
                ours / direct
            );
            aims.push((text, ours <= 1.1 * direct));
        }
        for path in [Path::Bypass, Path::Splice] {
            let process = |path| median(self.process(paced, path));
            if let (Some(ours), Some(theirs)) = (process(path), process(Path::Nginx)) {
                let text = format!(
                    "{}: process CPU per event ≤ 0.05 × nginx's: {ours:.3} µs, nginx {theirs:.2} µs, {:.4} ×",
                    path.label(),
                    ours / theirs
                );
                aims.push((text, ours <= 0.05 * theirs));
            }
        }
        for workload in Workload::ALL {
            let machine = |path| self.figure(workload, path, |trial| Some(trial.machine_us));
            if let (Some(auto), Some(copy)) = (machine(Path::Auto), machine(Path::Copy)) {
                let unit = workload.unit();
                let text = format!(
                    "auto no worse than copy, {workload:?}: machine CPU {} µs/{unit}, copy {} µs/{unit} \
                     (met if the median is not above copy's largest)",
                    cell(Some(auto)),
                    cell(Some(copy))
                );
                aims.push((text, auto.median <= copy.max));
            }
        }
        aims
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.trials.iter().map(|trial| trial.round + 1).max().unwrap_or(0);
        writeln!(f, "\n## Relays: medians of {rounds} rounds of {} s (smallest–largest)\n", self.seconds)?;
        write!(f, "{}", self.setup)?;
        for workload in Workload::ALL {
            if self.trials.iter().any(|trial| trial.workload == workload) {
                self.table(f, workload)?;
            }
        }
        for (path, why) in &self.unavailable {
            writeln!(f, "\n{path}: skipped: {why}")?;
        }
        let disturbed: Vec<_> =
            self.trials.iter().filter(|trial| trial.foreign_cores > FOREIGN_CORES_MAX).collect();
        if !disturbed.is_empty() {
            let worst = disturbed.iter().map(|trial| trial.foreign_cores).fold(0.0, f64::max);
            writeln!(
                f,
                "\nwarning: in {} of {} trials foreign processes took more than {FOREIGN_CORES_MAX} cores \
                 ({worst:.2} at most): these figures are not worth much",
                disturbed.len(),
                self.trials.len()
            )?;
        }
        for failure in &self.failures {
            writeln!(f, "\nfailed: {failure}")?;
        }
        let aims = self.aims();
        if !aims.is_empty() {
            let doubt = if disturbed.is_empty() { "" } else { " (doubtful: the run was disturbed)" };
            writeln!(f, "\n### Aims{doubt}\n")?;
        }
        for (aim, is_met) in aims {
            let (mark, word) = if is_met { ("x", "met") } else { (" ", "not met") };
            writeln!(f, "- [{mark}] {word}: {aim}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(round: usize, path: Path, machine_us: f64) -> Trial {
        Trial {
            round,
            workload: Workload::Paced,
            path,
            seconds: 5.0,
            units: 100.0,
            units_per_s: 20.0,
            process_us: if path == Path::Nginx { 10.0 } else { 0.4 },
            machine_us,
            foreign_cores: 0.0,
            lateness_p50_us: Some(30.0),
            lateness_p99_us: Some(60.0),
            relayed_share: None,
            relay_metrics: String::new(),
        }
    }

    #[test]
    fn beyond_direct_is_taken_within_the_round_and_aims_from_medians() {
        let trials = [(0, 40.0), (1, 60.0), (2, 41.0)].into_iter().flat_map(|(round, direct)| {
            [
                trial(round, Path::Direct, direct),
                trial(round, Path::Bypass, direct + 1.0),
                trial(round, Path::Nginx, direct + 8.0),
            ]
        });
        let report = Report {
            setup: Setup::new(),
            seconds: 5.0,
            trials: trials.collect(),
            unavailable: vec![("HAProxy".to_owned(), "haproxy is not installed".to_owned())],
            failures: Vec::new(),
        };
        let text = report.to_string();
        assert!(
            text.contains("| bypass | 20.0 (20.0–20.0) | 0.40 (0.40–0.40) | 1.00 (1.00–1.00) |"),
            "{text}"
        );
        assert!(text.contains("[x] met: bypass ≤ 0.25 × nginx's machine CPU"), "{text}");
        assert!(text.contains("[x] met: bypass: process CPU per event ≤ 0.05"), "{text}");
        assert!(text.contains("HAProxy: skipped: haproxy is not installed"), "{text}");
        assert!(!text.contains("warning"), "{text}");
    }
}
