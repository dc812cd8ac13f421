//! Chat templates of strangers: each ends soon, in little memory, with one short error or a right text.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Instant;

use mope_lm::chat::{ChatTemplate, Message, Role};
use proptest::prelude::*;

fn render(source: &str, messages: &[Message]) -> mope_lm::Result<String> {
    ChatTemplate::new(source, "<s>".into(), "</s>".into())?.render(messages, true)
}

fn hi() -> Vec<Message> {
    vec![Message::user("hi")]
}

fn rendered(source: &str) -> String {
    render(source, &hi()).unwrap()
}

/// The error of a template that must not be rendered: short, and soon there.
fn refused(source: &str) -> String {
    let start = Instant::now();
    let error = render(source, &hi()).unwrap_err().to_string();
    assert!(start.elapsed().as_secs() < 15, "{source}: {error}");
    assert!(error.starts_with("chat template: "), "{error}");
    assert!(error.chars().count() < 800, "{}", error.len());
    error
}

/// A loop of so many rounds over a namespace with this in `x`.
fn rounds(n: usize, first: &str, body: &str) -> String {
    format!(
        "{{% set ns = namespace(x={first}) %}}{{% for i in range({n}) %}}{body}{{% endfor %}}{{{{ ns.x | length }}}}"
    )
}

#[test]
fn loops_end() {
    let nested = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}\
                  {% endfor %}{% endfor %}{% endfor %}";
    refused(nested);
    refused("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}");
    refused("{% for x in [[[]]] recursive %}{{ loop([x]) }}{% endfor %}");
    refused("{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{{ s | length }}{% endfor %}");
    refused("{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{{ s[i] }}{% endfor %}");
    refused("{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{{ s[i:i] }}{% endfor %}");
    refused(
        "{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}",
    );
    refused(
        "{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
    );
    refused(
        "{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{% if 'b' in s %}{% endif %}{% endfor %}",
    );
    refused(
        "{% set s = 'a' * 4000000 %}{% for i in range(100000) %}{% if s is lower %}{% endif %}{% endfor %}",
    );
    refused(
        "{% set l = range(100000) | list %}{% for i in range(100000) %}{{ l | sort | first }}{% endfor %}",
    );
}

#[test]
fn what_doubles_is_refused() {
    for body in [
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x = ns.x * 2 %}",
        "{% set ns.x = ns.x.replace('', 'aaaa') %}",
        "{% set ns.x = ns.x | replace('a', 'aaaa') %}",
        "{% set ns.x = ns.x | indent(1000, true) ~ '\\n' ~ ns.x %}",
        "{% set ns.x = [ns.x, ns.x] | join %}",
        "{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}",
        "{% set ns.x = '%s%s' | format(ns.x, ns.x) %}",
        "{% set ns.x = '{0}{0}'.format(ns.x) %}",
        "{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}",
        "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns.x = m(ns.x) %}",
        "{% set ns.x = ns.x | tojson | tojson ~ ns.x %}",
        "{% set ns.x = ns.x | escape ~ ns.x %}",
    ] {
        refused(&rounds(80, "'ab\\n'", body));
    }
    for body in [
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x = ns.x * 2 %}",
        "{% set ns.x = ns.x * 1000000000000 %}",
        "{% set ns.x = [ns.x, ns.x] %}",
        "{% set ns.x = {'a': ns.x, 'b': ns.x} %}",
        "{% set ns.x = dict(a=ns.x, b=ns.x) %}",
        "{% set ns.x = ns.x | chain(ns.x) %}",
        "{% set ns.x = ns.x | zip(ns.x) %}",
        "{% set ns.x = [ns.x | string ~ ns.x | string] %}",
        "{% set ns.x = [ns.x | pprint ~ ns.x | pprint] %}",
    ] {
        refused(&rounds(80, "[1, 2]", body));
    }
}

#[test]
fn what_is_nested_is_refused() {
    for body in [
        "{% set ns.x = [ns.x] %}",
        "{% set ns.x = {'a': ns.x} %}",
        "{% set ns.x = dict(a=ns.x) %}",
        "{% set ns.x = namespace(a=ns.x) %}",
        "{% set ns.x = ns %}{{ ns }}",
        "{% set p = ns.x %}{% macro m() %}{{ p }}{% endmacro %}{% set ns.x = m %}",
        "{% set p = ns.x %}{% macro m() %}{{ p }}{% endmacro %}{% set ns.x = [m] %}",
        "{% set p = ns.x %}{% macro m() %}{{ p }}{% endmacro %}{% set ns.x = namespace(m=m) %}",
    ] {
        refused(&rounds(100_000, "[1]", body));
    }
    refused(&format!("{{{{ {} }}}}", "1 + ".repeat(200_000) + "1"));
    refused(&format!(
        "{{{{ {}1{} }}}}",
        "(".repeat(900),
        ")".repeat(900)
    ));
    refused(&format!("{{{{ 1{} }}}}", " | int".repeat(100_000)));
    refused(&format!("{{{{ messages{} }}}}", "[0]".repeat(100_000)));
    refused(&format!(
        "{{% if 0 %}}{}{{% endif %}}",
        "{% elif 0 %}".repeat(100_000)
    ));
    refused(&"{% if 1 %}".repeat(4000));
    refused(&"a".repeat(2 << 20));
}

#[test]
fn deep_but_allowed_code_does_not_exhaust_the_stack() {
    let sum = "1 + ".repeat(990) + "1";
    assert_eq!(rendered(&format!("{{{{ {sum} }}}}")), "991");
    let filters = " | int".repeat(990);
    assert_eq!(rendered(&format!("{{{{ 1{filters} }}}}")), "1");
    for prefix in ["not ", "-", "("] {
        drop(render(
            &format!("{{{{ {}1 }}}}", prefix.repeat(1900)),
            &hi(),
        ));
    }
    let elif = "{% elif 0 %}".repeat(4900);
    drop(render(&format!("{{% if 0 %}}{elif}{{% endif %}}"), &hi()));
    drop(render(
        &format!("{{{{ {}1 }}}}", "1 if 0 else ".repeat(600)),
        &hi(),
    ));
    drop(render(
        &format!("{{{{ {}1 }}}}", "1 ** ".repeat(990)),
        &hi(),
    ));
}

#[test]
fn widths_are_bounded() {
    for source in [
        "{{ messages | tojson(indent=100000000000) }}",
        "{{ messages | tojson(indent=-1) }}",
        "{{ 'a' | indent(100000000000) }}",
        "{{ 'a' | indent(width=100000000000) }}",
        "{{ 'a\\n' * 1000000 | indent(1000) }}",
        "{{ ('a\\n' * 1000000) | indent(1000) }}",
        "{{ [1] | batch(100000000000) | list }}",
        "{{ [1] | batch(100000000000, 'x') | list }}",
        "{{ [1] | slice(100000000000) | list }}",
        "{{ '%100000000000d' | format(1) }}",
        "{{ '%.100000000000f' | format(1.0) }}",
        "{{ '%*d' | format(1000000000, 1) }}",
        "{{ '{:>100000000000}'.format('a') }}",
        "{{ '{:>{w}}'.format('a', w=1000000000) }}",
        "{{ ('%9999d' * 100000) | format(1) }}",
        "{{ 'a' * 1000000000000 }}",
        "{{ range(1000000000) | list }}",
        "{{ 'x'.join(('a' * 4000000) | list) ~ 'y' * 4000000 }}",
    ] {
        refused(source);
    }
    assert_eq!(rendered("{{ 'a\\nb' | indent(2) }}"), "a\n  b");
    assert_eq!(rendered("{{ '%5d|%s' | format(7, 'x') }}"), "    7|x");
    assert_eq!(rendered("{{ '{:>4}|{}'.format('a', 10) }}"), "   a|10");
    assert_eq!(
        rendered("{{ {'a': [1, 'é']} | tojson }}"),
        "{\"a\": [1, \"é\"]}"
    );
    assert_eq!(rendered("{{ [1] | tojson(indent=2) }}"), "[\n  1\n]");
    assert_eq!(
        rendered("{{ [1, 2, 3] | batch(2) | list }}"),
        "[[1, 2], [3]]"
    );
}

#[test]
fn output_is_bounded() {
    refused("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}");
    refused(&format!(
        "{{% for i in range(100000) %}}{}{{% endfor %}}",
        "raw ".repeat(100)
    ));
    refused(&format!(
        "{{% set x %}}{{% for i in range(100000) %}}{}{{% endfor %}}{{% endset %}}",
        "raw ".repeat(1000)
    ));
    let error = refused(&"x{% if 1 %}y".repeat(3000));
    assert!(error.contains("does not parse"), "{error}");
    refused("{{ raise_exception('no ' * 100000) }}");
}

#[test]
fn long_conversations_are_not_refused() {
    let turn = |i: usize| Message {
        role: [Role::User, Role::Assistant][i % 2],
        content: format!("{i} {}", "word ".repeat(200)),
    };
    let messages: Vec<Message> = (0..1001).map(turn).collect();
    let chatml = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
                  + '<|im_end|>' + '\\n' }}{% endfor %}";
    let text = render(chatml, &messages).unwrap();
    assert!(text.len() > 1_000_000 && text.ends_with("<|im_end|>\n"));
    let gathered = "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}{% endfor %}\
                    {{ ns.t }}";
    let few = &messages[..200];
    let all: String = few.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(render(gathered, few).unwrap(), all);
    let long = [Message::user("x".repeat(5_000_000))];
    assert!(render(chatml, &long).unwrap().len() > 5_000_000);
}

#[test]
fn templates_read_as_in_transformers() {
    assert_eq!(
        rendered("a\r\n{% if true %}\r\nb\r\n{% endif %}\rc\n"),
        "a\nb\nc"
    );
    assert_eq!(
        rendered(
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        ),
        "hi"
    );
    assert_eq!(
        rendered("a \n {%- generation -%} \n b{%- endgeneration %}\nc"),
        "abc"
    );
    assert_eq!(
        rendered("{{ tools is defined }} {{ tools is none }} {{ documents is none }}"),
        "True True True"
    );
    assert_eq!(rendered("{{ strftime_now('%d %b %Y') }}"), "26 Jul 2024");
    assert_eq!(rendered("{{ 1 < 2 < 3 }}{{ 1 < 2 < 1 }}"), "TrueFalse");
    assert_eq!(
        rendered(
            "{% for i in range(3) if i != 1 %}{{ loop.index }}:{{ i }}{% if not loop.last %},{% endif %}{% else %}-{% endfor %}"
        ),
        "1:0,2:2"
    );
    assert_eq!(
        rendered(
            "{% macro m(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(2, b='y') }}"
        ),
        "[1x][2y]"
    );
    assert_eq!(
        rendered(
            "{{ messages[0].content[::-1] }}{{ messages[-1]['role'] }}{{ messages[1:] | length }}"
        ),
        "ihuser0"
    );
    assert_eq!(
        rendered(
            "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ 'x' if ns.a == 2 else 'y' }}"
        ),
        "2x"
    );
    assert_eq!(
        rendered("{{ messages | map(attribute='role') | join(',') }}{{ bos_token }}"),
        "user<s>"
    );
    let template = ChatTemplate::new(
        "{{ strftime_now('%Y-%m-%d %H:%M, %A') }}",
        String::new(),
        String::new(),
    );
    let date = chrono::NaiveDate::from_ymd_opt(2025, 2, 1).unwrap();
    let text = template.unwrap().dated(date).render(&hi(), true).unwrap();
    assert_eq!(text, "2025-02-01 00:00, Saturday");
    refused("{{ strftime_now('%Q%!') }}");
    assert!(
        refused("{{ raise_exception('roles must alternate') }}").contains("roles must alternate")
    );
}

/// Parts that make up templates, so that most of those made of them are parsed.
fn part() -> impl Strategy<Value = String> {
    let value = prop::sample::select(vec![
        "messages",
        "ns.x",
        "ns",
        "loop",
        "'ab'",
        "9",
        "-1",
        "range(50)",
        "[ns.x]",
        "none",
        "m",
        "x",
        "{'a': ns.x}",
    ]);
    let operator = prop::sample::select(vec![
        " ~ ", " + ", " * ", " - ", " // ", " ** ", " in ", " == ", " < ", " and ", " % ",
    ]);
    let filter = prop::sample::select(vec![
        "",
        " | list",
        " | length",
        " | tojson",
        " | join(ns.x)",
        " | replace('a', 'bb')",
        " | indent(7)",
        " | string",
        " | batch(3)",
        " | slice(2)",
        " | sort",
        " | first",
        " | map('string')",
        " | items",
        " | format(ns.x)",
        " | reverse",
        " | unique",
        " | sum",
        " | chain(ns.x)",
        "[1:]",
        "[0]",
        ".strip()",
        ".split('a')",
        ".x",
    ]);
    let expression = (value.clone(), filter, operator, value)
        .prop_map(|(a, filter, operator, b)| format!("({a}){filter}{operator}({b})"));
    (expression, 0usize..9).prop_map(|(e, kind)| match kind {
        0 => format!("{{{{ {e} }}}}"),
        1 | 2 => format!("{{% set ns.x = {e} %}}"),
        3 => format!("{{% set x = {e} %}}"),
        4 => format!("{{% for i in {e} %}}"),
        5 => "{% endfor %}".into(),
        6 => format!("{{% if {e} %}}{{% set ns.x = ns.x ~ ns.x %}}{{% endif %}}"),
        7 => format!("{{% macro m(x) %}}{{{{ {e} }}}}{{% endmacro %}}"),
        _ => format!("{{% set t %}}{{{{ {e} }}}}{{% endset %}}{{% set ns.x = t %}}"),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_template_breaks_the_program(parts in prop::collection::vec(part(), 1..12)) {
        let open = parts.iter().filter(|p| p.starts_with("{% for")).count();
        let closed = parts.iter().filter(|p| p.as_str() == "{% endfor %}").count();
        let body = parts.concat() + &"{% endfor %}".repeat(open.saturating_sub(closed));
        let source = format!(
            "{{% set ns = namespace(x='ab') %}}{{% for r in range(40) %}}{body}{{% endfor %}}"
        );
        let start = Instant::now();
        if let Err(error) = render(&source, &hi()) {
            prop_assert!(error.to_string().chars().count() < 800);
        }
        prop_assert!(start.elapsed().as_secs() < 15, "{}", source);
    }

    #[test]
    fn no_text_breaks_the_parser(text in "[{}%# a-z0-9'\\\\.|()\\[\\]~+*\\r\\n-]{0,80}") {
        drop(render(&text, &hi()));
    }
}
