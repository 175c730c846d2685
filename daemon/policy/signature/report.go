package signature

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Predicate types of scan results.
const (
	// typeCosignVuln is cosign's (COSIGN_VULN_ATTESTATION_SPEC.md), whose
	// result is a report in the scanner's own format.
	typeCosignVuln = "https://cosign.sigstore.dev/attestation/vuln/v1"
	// in-toto's (attestation, spec/predicates/vulns.md and vulns_02.md).
	typeInTotoVulns1 = "https://in-toto.io/attestation/vulns/v0.1"
	typeInTotoVulns2 = "https://in-toto.io/attestation/vulns/v0.2"
)

var scanTypes = []string{typeCosignVuln, typeInTotoVulns1, typeInTotoVulns2}

// A finding is a vulnerability that a scanner found.
type finding struct {
	ID       string
	Severity severity
}

// A report is the result of a scan.
type report struct {
	// Finished is when the scan ended; zero if it does not say.
	Finished time.Time
	// Findings in the report's order. One vulnerability may be there several
	// times, once for each package that has it.
	Findings []finding
}

// A statement is one of in-toto (attestation, spec/v1/statement.md).
type statement struct {
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// parseReport reads the predicate of a scan result. The signature has been
// checked, but a scanner may be wrong or fooled, so that what can't be read is
// an error and not an empty report.
func parseReport(predicateType string, predicate []byte) (report, error) {
	var p struct {
		Scanner struct {
			Result json.RawMessage `json:"result"`
		} `json:"scanner"`
		Metadata struct {
			Started  string `json:"scanStartedOn"`
			Finished string `json:"scanFinishedOn"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(predicate, &p); err != nil {
		return report{}, fmt.Errorf("predicate: %w", err)
	}
	var r report
	for _, s := range []string{p.Metadata.Finished, p.Metadata.Started} {
		if s == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return report{}, errors.New("the time of the scan cannot be read")
		}
		// Trivy writes the zero time where it has none.
		if at.Year() > 1 {
			r.Finished = at
			break
		}
	}
	var err error
	if predicateType == typeCosignVuln {
		r.Findings, err = parseScanner(p.Scanner.Result)
	} else {
		r.Findings, err = parseInToto(p.Scanner.Result)
	}
	return r, err
}

// parseInToto reads the result of a vulns predicate: a list, which is empty if
// nothing was found. In 0.1 the text has an object around what the example has
// not; both are about.
func parseInToto(result []byte) ([]finding, error) {
	type vulnerability struct {
		ID       string `json:"id"`
		Severity []struct {
			Score string `json:"score"`
		} `json:"severity"`
	}
	var list []struct {
		vulnerability
		Vulnerability *vulnerability `json:"vulnerability"`
	}
	if err := json.Unmarshal(result, &list); err != nil || list == nil {
		return nil, errors.New("the scanner's result is not a list")
	}
	findings := make([]finding, 0, len(list))
	for _, entry := range list {
		v := entry.vulnerability
		if entry.Vulnerability != nil {
			v = *entry.Vulnerability
		}
		words := make([]string, 0, len(v.Severity))
		for _, s := range v.Severity {
			words = append(words, s.Score)
		}
		findings = append(findings, finding{v.ID, severityOf(words...)})
	}
	return findings, nil
}

// A scannerReport has what tells the formats of scanners apart.
type scannerReport struct {
	// Trivy's JSON.
	SchemaVersion int           `json:"SchemaVersion"`
	ArtifactName  *string       `json:"ArtifactName"`
	Results       []trivyResult `json:"Results"`
	Matches       *[]grypeMatch `json:"matches"`
	Version       string        `json:"version"`
	Runs          *[]sarifRun   `json:"runs"`
}

type trivyResult struct {
	Vulnerabilities []struct {
		ID       string `json:"VulnerabilityID"`
		Severity string `json:"Severity"`
	} `json:"Vulnerabilities"`
}

type grypeMatch struct {
	Vulnerability struct {
		ID       string `json:"id"`
		Severity string `json:"severity"`
	} `json:"vulnerability"`
}

// parseScanner reads a report in one of the formats that are known: trivy's
// and grype's JSON, and SARIF 2.1.0.
func parseScanner(result []byte) ([]finding, error) {
	if len(result) == 0 {
		return nil, errors.New("it has no result of a scanner")
	}
	// Some tools put the report in as a string.
	var text string
	if json.Unmarshal(result, &text) == nil {
		result = []byte(text)
	}
	var s scannerReport
	if err := json.Unmarshal(result, &s); err != nil {
		return nil, errors.New("the scanner's report is in no format that is known (trivy or grype JSON, SARIF)")
	}
	var found []finding
	switch {
	case s.Runs != nil && s.Matches == nil && s.SchemaVersion == 0:
		return parseSARIF(*s.Runs)
	case s.SchemaVersion == 2 && s.ArtifactName != nil && s.Runs == nil && s.Matches == nil:
		for _, r := range s.Results {
			for _, v := range r.Vulnerabilities {
				found = append(found, finding{v.ID, severityOf(v.Severity)})
			}
		}
		return found, nil
	case s.Matches != nil && s.Runs == nil && s.SchemaVersion == 0:
		for _, m := range *s.Matches {
			found = append(found, finding{m.Vulnerability.ID, severityOf(m.Vulnerability.Severity)})
		}
		return found, nil
	}
	return nil, errors.New("the scanner's report is in no format that is known (trivy or grype JSON, SARIF)")
}
