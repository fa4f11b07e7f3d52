//! Whether a chat template takes a message's content as a text or as a list of parts.
//!
//! vLLM reads this off the template and gives it what it takes: where a loop runs over the content of a message, parts
//! (`openai`), else one text, with the texts of parts joined by line breaks (`string`). The rules are those of vLLM's
//! `--chat-template-content-format auto` (vllm/renderers/hf.py, 0.32): a loop counts if it runs over
//!
//! * `content` of the variable of a loop over `messages` (or over a variable that `messages` was assigned to),
//! * a macro's parameter that is given such a content,
//! * a variable named `content`, outside macros.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::ast::{Call, CallArg, Expr, ForLoop, Macro, Stmt};

/// What a template is given as a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentFormat {
    /// One text.
    Text,
    /// A list of parts.
    Parts,
}

/// The format for the template with these statements.
pub(super) fn detect(template: &[Stmt<'_>]) -> ContentFormat {
    let mut facts = Facts::default();
    facts.statements(template, None);
    let messages = facts.names_of("messages");
    let items: BTreeSet<&str> = facts
        .loops
        .iter()
        .filter(|each| messages.iter().any(|name| is_access(each.over, name, None)))
        .filter_map(|each| each.target)
        .collect();
    let is_content =
        |expression: &Expr<'_>| items.iter().any(|item| is_access(expression, item, Some("content")));
    let loops_over_content = facts.loops.iter().any(|each| {
        is_content(each.over)
            || match (each.over, each.inside) {
                (Expr::Var(variable), None) => variable.id == "content",
                (Expr::Var(variable), Some(name)) => facts.is_given(name, variable.id, &is_content),
                _ => false,
            }
    });
    if loops_over_content { ContentFormat::Parts } else { ContentFormat::Text }
}

/// A loop of the template.
struct Loop<'t> {
    over: &'t Expr<'t>,
    target: Option<&'t str>,
    /// The macro that it is in.
    inside: Option<&'t str>,
}

/// What of a template matters here.
#[derive(Default)]
struct Facts<'t> {
    loops: Vec<Loop<'t>>,
    assignments: Vec<(&'t str, &'t Expr<'t>)>,
    calls: Vec<&'t Call<'t>>,
    parameters: BTreeMap<&'t str, Vec<&'t str>>,
}

impl<'t> Facts<'t> {
    /// `name`, and the names that it is assigned to, directly or by another.
    fn names_of(&self, name: &'t str) -> Vec<&'t str> {
        let mut names = vec![name];
        let mut next = 0;
        while let Some(known) = names.get(next).copied() {
            for (target, value) in &self.assignments {
                if is_access(value, known, None) && !names.contains(target) {
                    names.push(target);
                }
            }
            next += 1;
        }
        names
    }

    /// Whether some call gives the macro's parameter a value for which `holds`.
    fn is_given(&self, name: &str, parameter: &str, holds: &dyn Fn(&Expr<'_>) -> bool) -> bool {
        let parameters = self.parameters.get(name).map_or(&[][..], Vec::as_slice);
        let calls =
            self.calls.iter().filter(|call| matches!(&call.expr, Expr::Var(called) if called.id == name));
        calls.flat_map(|call| call.args.iter().enumerate()).any(|(place, argument)| match argument {
            CallArg::Pos(value) => parameters.get(place) == Some(&parameter) && holds(value),
            CallArg::Kwarg(key, value) => *key == parameter && parameters.contains(key) && holds(value),
            _ => false,
        })
    }

    fn statements(&mut self, statements: &'t [Stmt<'t>], inside: Option<&'t str>) {
        for statement in statements {
            self.statement(statement, inside);
        }
    }

    fn statement(&mut self, statement: &'t Stmt<'t>, inside: Option<&'t str>) {
        match statement {
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::ForLoop(each) => {
                let ForLoop { target, iter, filter_expr, body, else_body, .. } = &**each;
                let target = if let Expr::Var(variable) = target { Some(variable.id) } else { None };
                self.loops.push(Loop { over: iter, target, inside });
                self.expression(iter);
                self.expressions(filter_expr);
                self.statements(body, inside);
                self.statements(else_body, inside);
            }
            Stmt::IfCond(branch) => {
                self.expression(&branch.expr);
                self.statements(&branch.true_body, inside);
                self.statements(&branch.false_body, inside);
            }
            Stmt::WithBlock(block) => {
                self.expressions(block.assignments.iter().map(|(_, value)| value));
                self.statements(&block.body, inside);
            }
            Stmt::Set(set) => {
                if let Expr::Var(variable) = &set.target {
                    self.assignments.push((variable.id, &set.expr));
                }
                self.expression(&set.expr);
            }
            Stmt::SetBlock(block) => self.statements(&block.body, inside),
            Stmt::FilterBlock(block) => self.statements(&block.body, inside),
            Stmt::AutoEscape(block) => self.statements(&block.body, inside),
            Stmt::Macro(definition) => self.macro_definition(definition),
            Stmt::CallBlock(block) => {
                self.calls.push(&block.call);
                self.statements(&block.macro_decl.body, inside);
            }
            Stmt::Do(statement) => self.calls.push(&statement.call),
            _ => {}
        }
    }

    fn macro_definition(&mut self, definition: &'t Macro<'t>) {
        let name = |argument: &'t Expr<'t>| if let Expr::Var(variable) = argument { variable.id } else { "" };
        self.parameters.insert(definition.name, definition.args.iter().map(name).collect());
        self.statements(&definition.body, Some(definition.name));
    }

    fn expressions(&mut self, expressions: impl IntoIterator<Item = &'t Expr<'t>>) {
        for expression in expressions {
            self.expression(expression);
        }
    }

    /// Finds the calls in an expression.
    fn expression(&mut self, expression: &'t Expr<'t>) {
        match expression {
            Expr::Call(call) => {
                self.calls.push(call);
                self.expression(&call.expr);
                self.arguments(&call.args);
            }
            Expr::Filter(filter) => {
                self.expressions(&filter.expr);
                self.arguments(&filter.args);
            }
            Expr::Test(test) => self.expression(&test.expr),
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::BinOp(operation) => {
                self.expression(&operation.left);
                self.expression(&operation.right);
            }
            Expr::Compare(comparison) => {
                self.expression(&comparison.expr);
                self.expressions(comparison.ops.iter().map(|operation| &operation.expr));
            }
            Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr);
                self.expression(&choice.true_expr);
                self.expressions(&choice.false_expr);
            }
            Expr::GetAttr(access) => self.expression(&access.expr),
            Expr::GetItem(access) => self.expression(&access.expr),
            Expr::Slice(slice) => self.expression(&slice.expr),
            Expr::List(list) => self.expressions(&list.items),
            Expr::Tuple(tuple) => self.expressions(&tuple.items),
            Expr::Map(map) => self.expressions(&map.values),
            Expr::Var(_) | Expr::Const(_) => {}
        }
    }

    fn arguments(&mut self, arguments: &'t [CallArg<'t>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            }
        }
    }
}

/// Whether an expression is the variable (or, with a key, that member of it), filtered, tested or sliced.
fn is_access(expression: &Expr<'_>, variable: &str, key: Option<&str>) -> bool {
    let is_variable = |inner: &Expr<'_>| matches!(inner, Expr::Var(found) if found.id == variable);
    match (expression, key) {
        (Expr::Filter(filter), _) => {
            filter.expr.as_ref().is_some_and(|inner| is_access(inner, variable, key))
        }
        (Expr::Test(test), _) => is_access(&test.expr, variable, key),
        (Expr::Slice(slice), _) => is_access(&slice.expr, variable, key),
        (Expr::GetAttr(access), Some(key)) => access.name == key && is_variable(&access.expr),
        (Expr::GetItem(access), Some(key)) => {
            let subscript = if let Expr::Const(constant) = &access.subscript_expr {
                constant.value.as_str()
            } else {
                None
            };
            subscript == Some(key) && is_variable(&access.expr)
        }
        (_, None) => is_variable(expression),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::template::ChatTemplate, ContentFormat};

    #[test]
    fn a_loop_over_content_takes_parts_and_nothing_else_does() {
        let parts = [
            "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
            "{% for m in messages %}{% for c in m['content'] | list %}{{ c }}{% endfor %}{% endfor %}",
            "{% set all = messages[1:] %}{% set some = all %}{% for m in some %}{% for c in m.content %}{% endfor %}{% endfor %}",
            "{% for m in messages %}{% set content = m.content %}{% for c in content %}{% endfor %}{% endfor %}",
            "{% macro show(x, y) %}{% for c in y %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(1, m.content) }}{% endfor %}",
            "{% macro show(x, y) %}{% if x %}{% for c in y %}{% endfor %}{% endif %}{% endmacro %}{% for m in messages %}{% set z = 'a' + show(1, y=m['content']) %}{% endfor %}",
        ];
        let texts = [
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "{% for m in messages %}{% for c in m.tool_calls %}{{ c }}{% endfor %}{{ m.content }}{% endfor %}",
            "{% macro show(content) %}{% for c in content %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.role) }}{% endfor %}",
            "{% for m in others %}{% for c in m.content %}{% endfor %}{% endfor %}",
        ];
        let format = |source: &str| ChatTemplate::compile(source).expect(source).content_format;
        for source in parts {
            assert_eq!(format(source), ContentFormat::Parts, "{source}");
        }
        for source in texts {
            assert_eq!(format(source), ContentFormat::Text, "{source}");
        }
    }
}
