//! The screen at 80 by 24, as text.

use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::cli::top::view::Times;

fn view() -> View {
    let worker = |name: &str, state: &str, in_flight| WorkerLine {
        name: name.to_owned(),
        state: state.to_owned(),
        breaker: "closed".to_owned(),
        in_flight,
        kv_cache: 0.374,
        queued_prefill_tokens: 12_345,
        requests_per_s: Some(4.25),
        first_token: Times { p50: Some(0.0421), p99: Some(1.26) },
        between_tokens: Times { p50: Some(0.0089), p99: None },
    };
    let decision = |number: u64| DecisionLine {
        age_s: number as f64,
        request_id: format!("{number:032x}"),
        worker: "gpu1".to_owned(),
        reason: "load_over_prefix".to_owned(),
        prompt_tokens: 5_216,
        matched_tokens: 5_184,
        new_tokens: 32,
    };
    View {
        source: "kernel maps".to_owned(),
        uptime_s: Some(7_500.0),
        requests_per_s: Some(12.5),
        workers: vec![worker("gpu1", "serving", 7), worker("a-worker-with-a-long-name", "drained", 0)],
        streams: Vec::new(),
        prefixes: vec![PrefixLine {
            hash: "9a1f0c66d20b34e7".to_owned(),
            blocks: 64,
            hits: 1_234,
            idle_s: 3.0,
            workers: vec!["gpu1".to_owned(), "gpu2".to_owned()],
        }],
        decisions: (0..40).map(decision).collect(),
    }
}

/// The lines of the screen, without the spaces behind them.
fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
    terminal.draw(|frame| screen.draw(frame)).expect("it is drawn");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}

#[test]
fn the_fleet_fits_80_columns() {
    let lines = drawn(&mut Screen::new(view()), 80, 24);
    let expected = [
        " warmpath  12 req/s  7 in flight  2 workers  up 2h                  kernel maps",
        " 1 Workers   2 Streams   3 Prefixes   4 Decisions",
        "",
        "WORKER        STATE      BREAKER   FLT   KV QUEUE REQ/S TTFT50 TTFT99  ITL50",
        "gpu1          serving    closed      7  37%   12k   4.2   42ms   1.3s  8.9ms",
        "a-worker-with-a-… drained    closed      0  37%   12k   4.2   42ms   1.3s  8.9ms",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(line), squeezed(expected), "{}", lines.join("\n"));
    }
    assert!(lines[23].contains("q quit"), "{}", lines.join("\n"));
    assert!(lines.iter().all(|line| line.chars().count() <= 80));
}

#[test]
fn every_table_is_drawn_and_scrolled_and_nothing_panics_on_a_tiny_screen() {
    let mut screen = Screen::new(view());
    screen.turn(-1);
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[3].starts_with("REQUEST") && lines[4].contains("load_over_prefix"), "{}", lines.join("\n"));
    assert!(!lines.join("\n").contains("39s"));
    for _ in 0..4 {
        screen.scroll(10);
    }
    let lines = drawn(&mut screen, 80, 24).join("\n");
    assert!(lines.contains("39s"), "the last row is in sight: {lines}");
    screen.turn(2);
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[3].contains("no stream"), "{}", lines.join("\n"));
    screen.scroll(1);
    screen.turn(1);
    assert!(drawn(&mut screen, 80, 24)[4].contains("gpu1 gpu2"));
    for (width, height) in [(1, 1), (10, 3), (40, 10), (200, 60)] {
        for table in 0..TABLES.len() {
            screen.open(table);
            screen.scroll(isize::MAX);
            screen.scroll(isize::MIN);
            drawn(&mut screen, width, height);
        }
    }
}

#[test]
fn a_pause_keeps_what_is_shown_and_trouble_is_told() {
    let mut screen = Screen::new(view());
    screen.pause();
    screen.show(View { requests_per_s: Some(99.0), ..view() });
    assert!(drawn(&mut screen, 80, 24)[0].contains("12 req/s  7 in flight  2 workers  up 2h  PAUSED"));
    screen.pause();
    screen.show(View { requests_per_s: Some(99.0), ..view() });
    assert!(drawn(&mut screen, 80, 24)[0].contains("99 req/s"));
    screen.lost("the gateway is gone");
    assert!(drawn(&mut screen, 80, 24)[23].contains("the gateway is gone"));
    screen.show(view());
    assert!(drawn(&mut screen, 80, 24)[23].contains("q quit"));
}
