//! Messages between OSDs (under construction).
