//! `warmpath top`: a running gateway, watched from a terminal.
//!
//! The figures come from the pinned BPF maps where there are any and this user may read them, else from the admin port. A
//! thread of its own reads them once a second, so that the keys answer while the gateway does not.

mod api;
mod draw;
mod pinned;
mod view;

use std::{
    io::{self, IsTerminal as _},
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
    time::Duration,
};

use clap::{Args, ValueEnum};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};

use self::{api::Api, draw::Screen, pinned::Pinned, view::View};
use super::admin::{AdminArgs, AdminError};
use crate::{
    config::DEFAULT_INSTANCE,
    kernel::{KernelError, chain},
};

/// Between two readings.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a key may wait.
const TICK: Duration = Duration::from_millis(100);

/// Arguments of `warmpath top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath top\n  \
    warmpath top --from api --admin http://gateway:9090 --token-file token\n\n\
Keys: q quits, tab and shift-tab (or 1 to 4) change what is shown, arrows scroll, p pauses.")]
pub struct TopArgs {
    /// Where the figures come from: the kernel's maps on this host, or the admin port.
    #[arg(long, value_enum, default_value_t = Origin::Auto)]
    from: Origin,
    /// The gateway's name, if it has one (`warmpath serve --instance`): for its maps.
    #[arg(long, value_name = "NAME", env = "WARMPATH_INSTANCE")]
    instance: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Where figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Origin {
    /// The maps where they can be read, else the admin port.
    Auto,
    /// The pinned maps.
    Maps,
    /// The admin port.
    Api,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The gateway.
    #[error("top: {0}")]
    Admin(#[from] AdminError),
    /// No maps.
    #[error(
        "top: no maps of a running gateway can be read here (`warmpath maps` says why; --from api asks the admin port)"
    )]
    NoMaps,
    /// It has ended.
    #[error("the gateway is gone")]
    Gone,
    /// The kernel said no.
    #[error("top: {}", chain(_0))]
    Kernel(KernelError),
    /// Standard output is no terminal.
    #[error("top: this is no terminal: `warmpath workers list` and `warmpath maps` print")]
    NoTerminal,
    /// The terminal does not do as it is told.
    #[error("top: {0}")]
    Terminal(#[from] io::Error),
}

/// Where figures come from.
trait Source {
    /// The figures now.
    fn read(&mut self) -> Result<View, TopError>;
}

/// One reading.
type Reading = Result<View, TopError>;

pub(super) fn run(args: &TopArgs) -> Result<(), TopError> {
    if !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    let readings = follow(args)?;
    let first = readings.recv().map_err(|_| TopError::Gone)??;
    let mut terminal = ratatui::try_init()?;
    let ended = watch(&mut terminal, &readings, first);
    ratatui::restore();
    ended
}

/// Reads in a thread of its own, from where `args` say.
fn follow(args: &TopArgs) -> Result<Receiver<Reading>, TopError> {
    let instance = args.instance.clone().filter(|name| name != DEFAULT_INSTANCE);
    let (from, admin) = (args.from, args.admin.clone());
    let (send, receive) = mpsc::sync_channel(1);
    let open = move || -> Result<Box<dyn Source>, TopError> {
        let pinned = if from == Origin::Api { None } else { Pinned::open(instance.as_deref()) };
        match pinned {
            Some(pinned) => Ok(Box::new(pinned)),
            None if from == Origin::Maps => Err(TopError::NoMaps),
            None => Ok(Box::new(Api::new(&admin)?)),
        }
    };
    thread::Builder::new().name("readings".to_owned()).spawn(move || {
        let mut source = match open() {
            Ok(source) => source,
            Err(error) => return drop(send.send(Err(error))),
        };
        // Until nobody watches any more.
        while send.send(source.read()).is_ok() {
            thread::sleep(INTERVAL);
        }
    })?;
    Ok(receive)
}

fn watch(terminal: &mut DefaultTerminal, readings: &Receiver<Reading>, first: View) -> Result<(), TopError> {
    let mut screen = Screen::new(first);
    loop {
        match readings.try_recv() {
            Ok(Ok(view)) => screen.show(view),
            Ok(Err(error)) => screen.lost(&error.to_string()),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(TopError::Gone),
        }
        terminal.draw(|frame| screen.draw(frame))?;
        if event::poll(TICK)?
            && let Event::Key(key) = event::read()?
            && press(&mut screen, key)
        {
            return Ok(());
        }
    }
}

/// What a key does; whether it is the end.
fn press(screen: &mut Screen, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return false;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('p' | ' ') => screen.pause(),
        KeyCode::Tab | KeyCode::Right => screen.turn(1),
        KeyCode::BackTab | KeyCode::Left => screen.turn(-1),
        KeyCode::Char(digit @ '1'..='4') => screen.open(digit as usize - '1' as usize),
        KeyCode::Down | KeyCode::Char('j') => screen.scroll(1),
        KeyCode::Up | KeyCode::Char('k') => screen.scroll(-1),
        KeyCode::PageDown => screen.scroll(10),
        KeyCode::PageUp => screen.scroll(-10),
        KeyCode::Home => screen.scroll(isize::MIN),
        _ => {}
    }
    false
}
