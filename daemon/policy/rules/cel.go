package rules

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Limits of one expression. A rule that somebody wrote by hand is far from all
// of them.
const (
	maxExpression = 8192    // code points
	maxNodes      = 2000    // after macros
	maxRecursion  = 64      // of the parser
	maxNesting    = 3       // comprehensions in each other
	maxRegexp     = 2000    // instructions of a regular expression
	maxCost       = 200_000 // of one evaluation, in CEL's units
	maxMemory     = 200_000 // of one evaluation, in elements and letters

	// interruptEvery is after how many rounds of a comprehension the context
	// is looked at.
	interruptEvery = 64
)

// A language compiles conditions.
type language struct{ env *cel.Env }

func newLanguage() (*language, error) {
	text := cel.MapType(cel.StringType, cel.StringType)
	options := []cel.EnvOption{
		cel.Variable("annotations", text),
		cel.Variable("client", text),
		cel.Variable("signedBy", cel.ListType(cel.StringType)),
		cel.Variable("age", cel.DurationType),
		cel.Function("glob", cel.Overload("glob_string_string",
			[]*cel.Type{cel.StringType, cel.StringType}, cel.BoolType,
			cel.BinaryBinding(binary(glob)))),
		cel.Function("inNetwork", cel.Overload("in_network_string_string",
			[]*cel.Type{cel.StringType, cel.StringType}, cel.BoolType,
			cel.BinaryBinding(binary(inNetwork)))),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(maxRecursion),
		cel.ExpressionNodeLimit(maxNodes),
		cel.RegexProgramSizeLimit(maxRegexp),
		cel.DefaultUTCTimeZone(true),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
			cel.ValidateComprehensionNestingLimit(maxNesting),
		),
	}
	for _, name := range []string{"kind", "registry", "repository", "tag", "digest", "platform", "mediaType"} {
		options = append(options, cel.Variable(name, cel.StringType))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("the language of rules cannot be set up: %w", err)
	}
	return &language{env}, nil
}

// needContent are the variables that are not known before the content is.
func needContent(name string) bool {
	switch name {
	case "digest", "platform", "mediaType", "annotations", "signedBy", "age":
		return true
	}
	return false
}

// An expression is a condition in CEL.
type expression struct {
	program             cel.Program
	content, signatures bool // what it speaks of
}

// compile returns the condition that text is. The error is for who wrote it.
func (l *language) compile(text string) (*expression, error) {
	if strings.TrimSpace(text) == "" {
		return nil, errors.New(`there is no condition: write one, or "true" for every request`)
	}
	ast, issues := l.env.Compile(text)
	if issues.Err() != nil {
		return nil, explain(issues)
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("the condition is a %s, and must be true or false", ast.OutputType())
	}
	e := &expression{}
	if err := e.inspect(ast); err != nil {
		return nil, err
	}
	var err error
	e.program, err = l.env.Program(ast,
		cel.EvalOptions(cel.OptOptimize),
		cel.CostTracking(costs{}), cel.CostLimit(maxCost), cel.MemoryLimit(maxMemory),
		cel.InterruptCheckFrequency(interruptEvery))
	if err != nil {
		return nil, fmt.Errorf("the condition is not understood: %w", err)
	}
	return e, nil
}

// explain makes of what the compiler says one line for each mistake.
func explain(issues *cel.Issues) error {
	var errs []error
	for _, e := range issues.Errors() {
		errs = append(errs, fmt.Errorf("line %d, column %d: %s", e.Location.Line(), e.Location.Column()+1, e.Message))
	}
	if len(errs) == 0 {
		errs = append(errs, issues.Err())
	}
	return errors.Join(errs...)
}

// inspect finds what the expression speaks of, and patterns and networks in it
// that are none. A name that a macro gives to something of its own counts as
// the variable of that name: that errs on the side of asking later.
func (e *expression) inspect(a *cel.Ast) error {
	var errs []error
	visit := celast.NewExprVisitor(func(x celast.Expr) {
		switch x.Kind() {
		case celast.IdentKind:
			e.content = e.content || needContent(x.AsIdent())
			e.signatures = e.signatures || x.AsIdent() == "signedBy"
		case celast.CallKind:
			errs = append(errs, checkCall(x.AsCall()))
		}
	})
	celast.PreOrderVisit(a.NativeRep().Expr(), visit)
	return errors.Join(errs...)
}

// checkCall evaluates the second argument of our functions where it is written
// out, so that a mistake is found at the start and not in a pull.
func checkCall(c celast.CallExpr) error {
	if len(c.Args()) != 2 || c.Args()[1].Kind() != celast.LiteralKind {
		return nil
	}
	text, ok := c.Args()[1].AsLiteral().(types.String)
	if !ok {
		return nil
	}
	switch c.FunctionName() {
	case "glob":
		return checkGlob(string(text))
	case "inNetwork":
		_, err := inNetwork("192.0.2.1", string(text))
		return err
	}
	return nil
}

// holds is a condition.
func (e *expression) holds(ctx context.Context, v *values) (answer, error) {
	if err := ctx.Err(); err != nil {
		return no, err
	}
	out, _, err := e.program.ContextEval(ctx, v)
	switch {
	case err != nil && ctx.Err() != nil:
		return no, ctx.Err()
	case err != nil && v.unavailable != nil:
		return no, v.unavailable
	case err != nil:
		return no, &failed{err}
	case types.IsUnknown(out):
		return unknown, nil
	case out == types.True:
		return yes, nil
	case out == types.False:
		return no, nil
	}
	return no, &failed{fmt.Errorf("the condition came out as neither true nor false but %v", out.Type())}
}

// values are the Facts as an expression sees them (cel.Activation). Not for
// concurrent use.
type values struct {
	facts                     Facts
	registry, repository, tag string
	signers                   any   // what signedBy is, once it was asked for
	unavailable               error // of Facts.SignedBy
}

func newValues(f Facts) *values {
	return &values{facts: f, registry: strings.ToLower(f.Registry), repository: f.Repository, tag: f.Tag}
}

// Parent is for cel.Activation.
func (v *values) Parent() cel.Activation { return nil }

// ResolveName returns a variable: its value, *types.Unknown while it has none,
// or a *types.Err.
func (v *values) ResolveName(name string) (any, bool) {
	f := &v.facts
	if needContent(name) && !f.HasContent && (name != "digest" || f.Digest == "") {
		return types.NewUnknown(0, types.NewAttributeTrail(name)), true
	}
	switch name {
	case "kind":
		return str(f.Kind), true
	case "registry":
		return str(v.registry), true
	case "repository":
		return str(v.repository), true
	case "tag":
		return str(v.tag), true
	case "digest":
		return str(f.Digest), true
	case "platform":
		return str(f.Platform), true
	case "mediaType":
		return str(f.MediaType), true
	case "annotations":
		if f.Annotations == nil {
			return map[string]string{}, true
		}
		return f.Annotations, true
	case "client":
		return map[string]string{"door": f.Client.Door, "address": f.Client.Address, "user": strings.ToValidUTF8(f.Client.User, "\uFFFD")}, true
	case "age":
		if f.Age < 0 {
			return types.NewErr("the image does not say when it was made, and the rule asks for its age"), true
		}
		return types.Duration{Duration: f.Age}, true
	case "signedBy":
		return v.signedBy(), true
	}
	return nil, false
}

// signedBy asks for the signatures, once.
func (v *values) signedBy() any {
	switch {
	case v.signers != nil:
	case v.facts.SignedBy == nil:
		v.signers = types.NewErr("the rule asks for signatures, and none are looked for")
	default:
		who, err := v.facts.SignedBy()
		if err != nil {
			v.unavailable = err
			v.signers = types.WrapErr(err)
			break
		}
		if who == nil {
			who = []string{}
		}
		v.signers = who
	}
	return v.signers
}

func str(s string) types.String { return types.String(strings.ToValidUTF8(s, "\uFFFD")) }

// inNetwork reports whether address is in a network such as 10.0.0.0/8. What is
// no IP address, such as the client of a unix socket, is in none.
func inNetwork(address, network string) (bool, error) {
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return false, fmt.Errorf("%.60q is not a network: write one such as 10.0.0.0/8 or fd00::/8", network)
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return false, nil
	}
	return p.Contains(a.Unmap().WithZone("")), nil
}

// binary makes of a function of Go one of CEL.
func binary(f func(a, b string) (bool, error)) func(a, b ref.Val) ref.Val {
	return func(a, b ref.Val) ref.Val {
		x, okX := a.(types.String)
		y, okY := b.(types.String)
		if !okX || !okY {
			return types.MaybeNoSuchOverloadErr(a)
		}
		ok, err := f(string(x), string(y))
		if err != nil {
			return types.WrapErr(err)
		}
		return types.Bool(ok)
	}
}

// costs says what our functions cost (cost.ActualCostEstimator).
type costs struct{}

// CallCost counts letters: a pattern with many stars goes over them again.
func (costs) CallCost(function, _ string, args []ref.Val, _ ref.Val) *uint64 {
	if function != "glob" && function != "inNetwork" || len(args) != 2 {
		return nil
	}
	x, okX := args[0].(types.String)
	y, okY := args[1].(types.String)
	if !okX || !okY {
		return nil
	}
	c := 1 + uint64(len(x)+1)*uint64(len(y)+1)/100
	return &c
}
