// SPDX-License-Identifier: GPL-2.0
//! Which text format a scraper wants, and the older one: Prometheus 0.0.4, made of OpenMetrics.

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus 0.0.4.
    Plain,
}

impl Format {
    /// By the header `Accept` of a request. What says nothing of OpenMetrics gets the plain one.
    pub fn wanted(accept: &str) -> Self {
        let (mut open, mut plain) = (0.0, 0.0);
        for entry in accept.split(',') {
            let mut parts = entry.split(';').map(str::trim);
            let range = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0_f64, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.to_ascii_lowercase().as_str() {
                    "q" => quality = value.parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim_matches('"')),
                    _ => {}
                }
            }
            match range.as_str() {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0")) => {
                    open = quality.max(open);
                }
                "text/plain" if matches!(version, None | Some("0.0.4")) => {
                    plain = quality.max(plain);
                }
                _ => {}
            }
        }
        if open > 0.0 && open >= plain {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    /// The header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// A text in OpenMetrics, in this format.
    pub fn of(self, open: String) -> String {
        match self {
            Self::OpenMetrics => open,
            Self::Plain => plain(&open),
        }
    }
}

/// There families are called as their samples are, and there are neither units nor `info`.
fn plain(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT")) => {}
            (Some("#"), Some("HELP")) => help = words.next().zip(words.next()),
            (Some("#"), Some("TYPE")) => {
                let name = words.next().unwrap_or_default();
                let (suffix, kind) = match words.next().unwrap_or_default() {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    kind => ("", kind),
                };
                if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                    out += &format!("# HELP {name}{suffix} {text}\n");
                }
                out += &format!("# TYPE {name}{suffix} {kind}\n");
            }
            _ => {
                out += line;
                out += "\n";
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for open in [
            prometheus,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            "text/plain;q=0.5, application/openmetrics-text;version=1.0.0;charset=utf-8",
        ] {
            assert_eq!(Format::wanted(open), Format::OpenMetrics, "{open}");
        }
        for plain in [
            "",
            "*/*",
            "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
            "text/plain",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text;q=0.4,text/plain;version=0.0.4;q=0.5",
            ";,;=,q=1",
        ] {
            assert_eq!(Format::wanted(plain), Format::Plain, "{plain}");
        }
    }

    #[test]
    fn the_plain_one() {
        let open = "# HELP a What a is\n# TYPE a counter\na_total{x=\"# EOF\"} 1\n\
            # HELP b_seconds b\n# TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 2.5\n\
            # HELP c c\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let plain = "# HELP a_total What a is\n# TYPE a_total counter\na_total{x=\"# EOF\"} 1\n\
            # HELP b_seconds b\n# TYPE b_seconds gauge\nb_seconds 2.5\n\
            # HELP c_info c\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(Format::Plain.of(open.into()), plain);
        assert_eq!(Format::OpenMetrics.of(open.into()), open);
    }
}
