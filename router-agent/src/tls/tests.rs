//! Pairs, files that change, and what is said of wrong ones.
