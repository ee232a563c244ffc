//! A verify as JUnit XML: one suite a knock, one case a port; what proves nothing is an error.

use super::xml_escape;
use crate::commands::verify::Outcome;
use crate::commands::verify::proof::Word;
use std::fmt::Write as _;

enum Fate {
    Passed,
    Failed(String),
    Error(String),
    Skipped(String),
}

/// The whole document.
pub fn text(result: &Outcome<'_>) -> String {
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"portcullis verify\">\n",
    );
    for knock in &result.seen {
        let name = format!("{} as {} ({})", knock.address, knock.zone, knock.from);
        let mut cases: Vec<(String, Fate)> = knock
            .rows
            .iter()
            .map(|row| {
                let name = format!("{}/{}", row.proto, row.port);
                let fate = match (row.policy, row.knock) {
                    (Word::Open, Word::Closed) if !knock.limited.contains(&row.port) => {
                        Fate::Failed("the policy opens it, and it is closed".into())
                    }
                    (Word::Closed, Word::Open) => {
                        Fate::Failed("the policy closes it, and it is open".into())
                    }
                    (_, knock) => match (&row.disagreement, knock) {
                        (Some(text), _) => Fate::Failed(text.clone()),
                        (None, Word::Unsure) => {
                            Fate::Skipped("the knock proves nothing about it".into())
                        }
                        (None, _) => Fate::Passed,
                    },
                };
                (name, fate)
            })
            .collect();
        cases.push((
            "every other port is closed".into(),
            match &knock.inconclusive {
                Some(why) => Fate::Error(why.clone()),
                None => Fate::Passed,
            },
        ));
        suite(&mut out, &name, &cases);
    }
    let mut cases: Vec<(String, Fate)> = result
        .tests
        .iter()
        .map(|test| {
            let fate = match test.holds {
                Some(true) => Fate::Passed,
                Some(false) => Fate::Failed(test.shown.clone()),
                None => Fate::Skipped(test.shown.clone()),
            };
            (test.test.clone(), fate)
        })
        .collect();
    cases.extend(result.sides.iter().map(|side| {
        let name = format!("{}/{} from both sides", side.proto, side.port);
        let fate = match side.proven() {
            true => Fate::Passed,
            false => Fate::Skipped(side.text()),
        };
        (name, fate)
    }));
    cases.extend(result.unproven.iter().map(|zone| {
        let name = format!("knocked from {zone}");
        (name, Fate::Skipped("nobody knocked from there".into()))
    }));
    if !cases.is_empty() {
        suite(&mut out, "policy", &cases);
    }
    out.push_str("</testsuites>\n");
    out
}

fn suite(out: &mut String, name: &str, cases: &[(String, Fate)]) {
    let count = |wanted: fn(&Fate) -> bool| cases.iter().filter(|(_, fate)| wanted(fate)).count();
    let _ = writeln!(
        out,
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">",
        xml_escape(name),
        cases.len(),
        count(|fate| matches!(fate, Fate::Failed(_))),
        count(|fate| matches!(fate, Fate::Error(_))),
        count(|fate| matches!(fate, Fate::Skipped(_))),
    );
    for (case, fate) in cases {
        let inner = match fate {
            Fate::Passed => String::new(),
            Fate::Failed(why) => format!("<failure message=\"{}\"/>", xml_escape(why)),
            Fate::Error(why) => format!("<error message=\"{}\"/>", xml_escape(why)),
            Fate::Skipped(why) => format!("<skipped message=\"{}\"/>", xml_escape(why)),
        };
        let _ = writeln!(
            out,
            "<testcase classname=\"{}\" name=\"{}\">{inner}</testcase>",
            xml_escape(name),
            xml_escape(case)
        );
    }
    out.push_str("</testsuite>\n");
}
