//! mon (under construction)
