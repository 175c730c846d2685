package signature

import (
	"encoding/json"
	"errors"
)

// A sarifRun is a run of SARIF 2.1.0 (section 3.14), as far as it is needed.
type sarifRun struct {
	Tool struct {
		Driver sarifComponent `json:"driver"`
	} `json:"tool"`
	Results *[]sarifResult `json:"results"`
}

type sarifComponent struct {
	Rules []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID            string `json:"id"`
	Configuration struct {
		Level string `json:"level"`
	} `json:"defaultConfiguration"`
	Properties sarifProperties `json:"properties"`
}

// sarifProperties has the CVSS score under the name that GitHub's code scanning
// gave it, which scanners write as a string or a number.
type sarifProperties struct {
	Score json.RawMessage `json:"security-severity"`
}

func (p sarifProperties) score() string {
	var s string
	if json.Unmarshal(p.Score, &s) == nil {
		return s
	}
	return string(p.Score)
}

type sarifResult struct {
	RuleID string `json:"ruleId"`
	Index  *int   `json:"ruleIndex"`
	Rule   struct {
		ID    string `json:"id"`
		Index *int   `json:"index"`
	} `json:"rule"`
	Level      string          `json:"level"`
	Kind       string          `json:"kind"`
	Properties sarifProperties `json:"properties"`
}

// parseSARIF reads the findings of runs. A run without results is one that did
// not get that far (section 3.14.23), and so no report.
func parseSARIF(runs []sarifRun) ([]finding, error) {
	if len(runs) == 0 {
		return nil, errors.New("the SARIF report has no run")
	}
	var found []finding
	for _, run := range runs {
		if run.Results == nil {
			return nil, errors.New("a run of the SARIF report has no results")
		}
		rules := run.Tool.Driver.Rules
		byID := make(map[string]*sarifRule, len(rules))
		for i := range rules {
			byID[rules[i].ID] = &rules[i]
		}
		for _, r := range *run.Results {
			if r.Kind != "" && r.Kind != "fail" { // pass, notApplicable, …
				continue
			}
			found = append(found, r.finding(rules, byID))
		}
	}
	return found, nil
}

// finding takes the score if there is one, of the result or else of its rule,
// and else the level, whose default is warning (section 3.27.10).
func (r *sarifResult) finding(rules []sarifRule, byID map[string]*sarifRule) finding {
	rule := &sarifRule{ID: r.RuleID}
	if rule.ID == "" {
		rule.ID = r.Rule.ID
	}
	index := r.Index
	if index == nil {
		index = r.Rule.Index
	}
	if index != nil && *index >= 0 && *index < len(rules) && (rule.ID == "" || rules[*index].ID == rule.ID) {
		rule = &rules[*index]
	} else if known := byID[rule.ID]; known != nil {
		rule = known
	}
	for _, p := range []sarifProperties{r.Properties, rule.Properties} {
		if len(p.Score) > 0 {
			return finding{rule.ID, severityOf(p.score())}
		}
	}
	level := r.Level
	if level == "" {
		level = rule.Configuration.Level
	}
	switch level {
	case "", "warning":
		return finding{rule.ID, medium}
	case "none":
		return finding{rule.ID, negligible}
	}
	return finding{rule.ID, severityOf(level)}
}
