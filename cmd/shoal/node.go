package main

import (
	"context"
	"errors"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
)

// askWithin bounds how long a node may take to answer what needs no work.
const askWithin = 10 * time.Second

// nodeFlag are the flags of every command that asks a running node.
type nodeFlag struct {
	Admin          string `default:"127.0.0.1:7053" env:"SHOAL_ADMIN_LISTEN" placeholder:"ADDRESS" help:"admin.listen of the node to ask: HOST:PORT, https://HOST:PORT or unix:PATH (default: ${default})"`
	AdminTokenFile string `env:"SHOAL_ADMIN_TOKEN_FILE" placeholder:"FILE" help:"file with a token of the node's admin.tokens"`
	AdminCA        string `name:"admin-ca" env:"SHOAL_ADMIN_CA" placeholder:"FILE" help:"PEM file of the CA of the node's admin.tls, if the system does not have it"`
	AdminCert      string `env:"SHOAL_ADMIN_CERT" placeholder:"FILE" help:"PEM file of a certificate of the node's admin.certificates"`
	AdminKey       string `env:"SHOAL_ADMIN_KEY" placeholder:"FILE" help:"PEM file of that certificate's key"`
}

// clientEnv are the variables of those flags that are no settings of a node.
var clientEnv = []string{"SHOAL_ADMIN_TOKEN_FILE", "SHOAL_ADMIN_CA", "SHOAL_ADMIN_CERT", "SHOAL_ADMIN_KEY"}

// client asks the node. What is wrong with the files, its first answer says.
func (n nodeFlag) client() *admin.Client {
	return admin.NewClient(n.Admin).With(admin.Proof{Token: n.AdminTokenFile, CA: n.AdminCA, Cert: n.AdminCert, Key: n.AdminKey})
}

// orCut returns the interruption that ended ctx, or err if there was none.
func orCut(ctx context.Context, err error) error {
	if cut := (interrupted{}); errors.As(context.Cause(ctx), &cut) {
		return cut
	}
	return err
}
