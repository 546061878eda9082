//! The framing (under construction).
