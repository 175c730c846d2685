package signature

import (
	"fmt"
	"strings"
)

// trivyReport is one of trivy's, of vulnerabilities and their severities.
func trivyReport(pairs ...string) string {
	var list []string
	for i := 0; i+1 < len(pairs); i += 2 {
		list = append(list, fmt.Sprintf(`{"VulnerabilityID":%q,"PkgName":"openssl","Severity":%q}`, pairs[i], pairs[i+1]))
	}
	return `{"SchemaVersion":2,"ArtifactName":"app","Results":[{"Target":"app","Class":"os-pkgs"},{"Target":"os","Vulnerabilities":[` + strings.Join(list, ",") + `]}]}`
}

// cosignVuln is a predicate of cosign's with a scanner's report.
func cosignVuln(finished, result string) string {
	return fmt.Sprintf(`{"invocation":{"parameters":null,"uri":"","event_id":"","builder.id":""},
		"scanner":{"uri":"pkg:github/aquasecurity/trivy@dev","version":"dev","db":{"uri":"","version":""},"result":%s},
		"metadata":{"scanStartedOn":%q,"scanFinishedOn":%q}}`, result, finished, finished)
}

// inTotoVulns is a predicate of in-toto's vulns.
func inTotoVulns(finished, result string) string {
	return fmt.Sprintf(`{"scanner":{"uri":"pkg:github/aquasecurity/trivy@244fd47","db":{"lastUpdate":%q},"result":%s},
		"metadata":{"scanStartedOn":%q,"scanFinishedOn":%q}}`, finished, result, finished, finished)
}
