//! Configuration files of any text: reading one never panics, a refusal says something, and what is accepted is what it
//! was: read twice it is the same, and no reload of it takes a restart.
#![no_main]

use libfuzzer_sys::fuzz_target;
use router_agent::config::{Config, File, settle};

fn read(text: &str) -> Result<Config, String> {
    let mut config = Config::default();
    File::parse(text)?.apply(&mut config).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

fuzz_target!(|text: &str| {
    match (read(text), read(text)) {
        (Ok(config), Ok(again)) => {
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
            assert!(settle(&config, &config, &mut again.clone()).is_empty());
        }
        (Err(why), Err(again)) => assert!(!why.is_empty() && why == again),
        (one, other) => panic!("read twice: {one:?}, {other:?}"),
    }
});
