//! What `top` draws: a line on the whole gateway, and one of four tables. Everything fits 80 by 24.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Row, Table, TableState, Tabs},
};

use super::view::{DecisionLine, PrefixLine, StreamLine, View, WorkerLine};

/// The tables, in the order of their tabs.
const TABLES: [&str; 4] = ["Workers", "Streams", "Prefixes", "Decisions"];

/// Columns of the first line that belong to the figures.
const HEAD_WIDTH: u16 = 54;

/// The screen: what is shown, and how far it is scrolled.
pub(super) struct Screen {
    view: View,
    table: usize,
    rows: TableState,
    is_paused: bool,
    /// Why the figures are old.
    trouble: Option<String>,
}

impl Screen {
    pub(super) fn new(view: View) -> Self {
        Self { view, table: 0, rows: TableState::default(), is_paused: false, trouble: None }
    }

    /// New figures, unless it is paused.
    pub(super) fn show(&mut self, view: View) {
        self.trouble = None;
        if !self.is_paused {
            self.view = view;
        }
    }

    /// There are no new figures.
    pub(super) fn lost(&mut self, why: &str) {
        self.trouble = Some(why.to_owned());
    }

    pub(super) fn pause(&mut self) {
        self.is_paused = !self.is_paused;
    }

    /// So many tables on.
    pub(super) fn turn(&mut self, by: isize) {
        self.open((self.table as isize + by).rem_euclid(TABLES.len() as isize) as usize);
    }

    /// This table.
    pub(super) fn open(&mut self, table: usize) {
        self.table = table;
        self.rows = TableState::default();
    }

    /// So many rows on, as far as there are any.
    pub(super) fn scroll(&mut self, by: isize) {
        let last = self.length().saturating_sub(1);
        let at = self
            .rows
            .selected()
            .map_or_else(|| if by > 0 { by as usize - 1 } else { 0 }, |at| at.saturating_add_signed(by));
        self.rows.select(Some(at.min(last)));
    }

    fn length(&self) -> usize {
        let View { workers, streams, prefixes, decisions, .. } = &self.view;
        [workers.len(), streams.len(), prefixes.len(), decisions.len()][self.table]
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, tabs, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_head(frame, head);
        let titles = TABLES.iter().enumerate().map(|(at, title)| format!("{} {title}", at + 1));
        let chosen = Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED);
        frame.render_widget(Tabs::new(titles).select(self.table).highlight_style(chosen).divider(" "), tabs);
        match self.table {
            0 => self.draw_workers(frame, body),
            1 => self.draw_streams(frame, body),
            2 => self.draw_prefixes(frame, body),
            _ => self.draw_decisions(frame, body),
        }
        let foot_text = match &self.trouble {
            Some(why) => Line::from(format!(" {why}")).fg(Color::Red),
            None => Line::from(" q quit   tab next   ↑↓ scroll   p pause").dim(),
        };
        frame.render_widget(foot_text, foot);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let View { source, uptime_s, requests_per_s, workers, .. } = &self.view;
        let in_flight: u64 = workers.iter().map(|worker| worker.in_flight).sum();
        let mut spans = vec![
            Span::from(" warmpath").bold(),
            Span::from(format!(
                "  {} req/s  {in_flight} in flight  {} workers  up {}",
                rate(*requests_per_s),
                workers.len(),
                uptime_s.map_or_else(|| "-".to_owned(), age),
            )),
        ];
        if self.is_paused {
            spans.push(Span::from("  PAUSED").fg(Color::Yellow).bold());
        }
        frame.render_widget(Line::from(spans), area);
        // To the right, where that leaves room for the rest.
        let width = source.chars().count() as u16 + 1;
        if let Some(left) =
            area.width.checked_sub(width).filter(|left| *left >= HEAD_WIDTH && !self.is_paused)
        {
            let right = Rect { x: area.x + left, width, ..area };
            frame.render_widget(Line::from(source.as_str()).dim(), right);
        }
    }

    fn draw_workers(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let heads =
            ["WORKER", "STATE", "BREAKER", "FLT", "KV", "QUEUE", "REQ/S", "TTFT50", "TTFT99", "ITL50"];
        let widths = [14, 11, 9, 4, 5, 6, 6, 7, 7, 7];
        let row = |worker: &WorkerLine| {
            let cells = [
                worker.name.clone(),
                worker.state.clone(),
                worker.breaker.clone(),
                worker.in_flight.to_string(),
                format!("{:.0}%", worker.kv_cache * 100.0),
                count(worker.queued_prefill_tokens),
                rate(worker.requests_per_s),
                time(worker.first_token.p50),
                time(worker.first_token.p99),
                time(worker.between_tokens.p50),
            ];
            let well = matches!(worker.state.as_str(), "serving" | "healthy") && worker.breaker == "closed";
            (cells, if well { Style::new() } else { Style::new().fg(Color::Yellow) })
        };
        let rows: Vec<_> = self.view.workers.iter().map(row).collect();
        self.draw_table(frame, area, (heads, widths, 3), rows, "no workers");
    }

    fn draw_streams(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let heads = ["CLIENT", "WORKER", "BY", "AGE", "TTFT", "TOKENS", "BYTES"];
        let widths = [22, 16, 7, 7, 8, 7, 8];
        let row = |stream: &StreamLine| {
            let cells = [
                stream.client.clone(),
                stream.worker.clone(),
                stream.moved_by.clone(),
                age(stream.age_s),
                time(stream.first_token_s),
                count(stream.events),
                count(stream.bytes),
            ];
            (cells, Style::new())
        };
        let rows: Vec<_> = self.view.streams.iter().map(row).collect();
        self.draw_table(frame, area, (heads, widths, 3), rows, "no stream is under way");
    }

    fn draw_prefixes(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let heads = ["PREFIX", "HELD BY", "BLOCKS", "HITS", "IDLE"];
        let widths = [16, 37, 7, 8, 7];
        let row = |prefix: &PrefixLine| {
            let cells = [
                prefix.hash.clone(),
                prefix.workers.join(" "),
                count(prefix.blocks),
                count(prefix.hits),
                age(prefix.idle_s),
            ];
            (cells, Style::new())
        };
        let rows: Vec<_> = self.view.prefixes.iter().map(row).collect();
        self.draw_table(frame, area, (heads, widths, 2), rows, "no prefix has been seen yet");
    }

    fn draw_decisions(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let heads = ["REQUEST", "WORKER", "WHY", "AGO", "PROMPT", "CACHED", "NEW"];
        let widths = [17, 13, 17, 7, 7, 7, 6];
        let row = |decision: &DecisionLine| {
            let cells = [
                decision.request_id.clone(),
                decision.worker.clone(),
                decision.reason.clone(),
                age(decision.age_s),
                count(decision.prompt_tokens),
                count(decision.matched_tokens),
                count(decision.new_tokens),
            ];
            (cells, Style::new())
        };
        let rows: Vec<_> = self.view.decisions.iter().map(row).collect();
        self.draw_table(frame, area, (heads, widths, 3), rows, "no request has been routed yet");
    }

    /// Columns from `right_from` on are to the right.
    fn draw_table<const N: usize>(
        &mut self,
        frame: &mut Frame<'_>,
        area: Rect,
        (heads, mut widths, right_from): ([&str; N], [u16; N], usize),
        rows: Vec<([String; N], Style)>,
        nothing: &str,
    ) {
        if rows.is_empty() {
            frame.render_widget(Line::from(format!(" {nothing}")).dim(), area);
            return;
        }
        // What is left goes to the first column.
        widths[0] += area.width.saturating_sub(widths.iter().sum());
        let fitted = |cells: [String; N]| {
            let mut at = 0;
            cells.map(|cell| {
                let (width, right) = (usize::from(widths[at]), at >= right_from);
                at += 1;
                let cell = cut(&cell, width);
                Line::from(if right { format!("{cell:>width$}") } else { cell })
            })
        };
        let head = Row::new(fitted(heads.map(str::to_owned))).style(Style::new().dim());
        let rows = rows.into_iter().map(|(cells, style)| Row::new(fitted(cells)).style(style));
        let table = Table::new(rows, widths.map(Constraint::Length))
            .header(head)
            .column_spacing(0)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.rows);
    }
}

/// At most `width - 1` characters, so that columns do not touch.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() < width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(2)).collect();
    format!("{kept}…")
}

fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "-".to_owned(),
        Some(rate) if rate < 10.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{}k", number / 1_000),
        _ => format!("{}M", number / 1_000_000),
    }
}

fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 0.01 => format!("{:.1}ms", seconds * 1e3),
        Some(seconds) if seconds < 1.0 => format!("{:.0}ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.1}s"),
    }
}

fn age(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 100.0 => format!("{seconds:.0}s"),
        seconds if seconds < 6_000.0 => format!("{:.0}m", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0}h", seconds / 3_600.0),
        seconds => format!("{:.0}d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests;
