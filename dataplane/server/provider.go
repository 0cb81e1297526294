package server

import (
	"errors"
	"fmt"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/aws"
	"github.com/prism-gateway/prism/dataplane/credential/azure"
	"github.com/prism-gateway/prism/dataplane/credential/environment"
	"github.com/prism-gateway/prism/dataplane/credential/file"
	"github.com/prism-gateway/prism/dataplane/credential/google"
	"github.com/prism-gateway/prism/dataplane/credential/vault"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
)

// provider makes a provider of credentials as the configuration describes it.
func provider(p *bootstrapv1.CredentialProvider) (credential.Provider, error) {
	switch p.GetType().(type) {
	case *bootstrapv1.CredentialProvider_Vault:
		v := p.GetVault()
		identity, err := vaultIdentity(v)
		if err != nil {
			return nil, err
		}
		return vault.New(vault.Config{Address: v.GetAddress(), Namespace: v.GetNamespace(), CAFile: v.GetCaFile(), ServerName: v.GetServerName(), Identity: identity})
	case *bootstrapv1.CredentialProvider_AwsSecretsManager:
		a := p.GetAwsSecretsManager()
		return aws.New(aws.Config{Region: a.GetRegion(), RoleARN: a.GetRoleArn(), Endpoint: a.GetEndpoint()})
	case *bootstrapv1.CredentialProvider_GoogleSecretManager:
		g := p.GetGoogleSecretManager()
		return google.New(google.Config{Project: g.GetProjectId(), CredentialsFile: g.GetCredentialsFile(), Endpoint: g.GetEndpoint()})
	case *bootstrapv1.CredentialProvider_AzureKeyVault:
		z := p.GetAzureKeyVault()
		return azure.New(azure.Config{VaultURL: z.GetVaultUrl(), TenantID: z.GetTenantId(), ClientID: z.GetClientId()})
	case *bootstrapv1.CredentialProvider_File:
		return file.New(p.GetFile().GetDir())
	case *bootstrapv1.CredentialProvider_Environment:
		return environment.New(p.GetEnvironment().GetPrefix(), nil), nil
	}
	return nil, fmt.Errorf("%s: this build has no provider of this type", p.GetName())
}

// vaultIdentity is how the proxy logs in for itself.
func vaultIdentity(v *bootstrapv1.VaultProvider) (vault.Identity, error) {
	switch l := v.GetLogin().(type) {
	case nil:
		return nil, nil
	case *bootstrapv1.VaultProvider_TokenFile:
		return vault.TokenFile{Path: l.TokenFile.GetPath()}, nil
	case *bootstrapv1.VaultProvider_Jwt:
		return vault.JWT{AuthPath: l.Jwt.GetAuthPath(), Role: l.Jwt.GetRole(), File: l.Jwt.GetTokenFile(), Audience: l.Jwt.GetAudience()}, nil
	case *bootstrapv1.VaultProvider_Kubernetes:
		return vault.Kubernetes{AuthPath: l.Kubernetes.GetAuthPath(), Role: l.Kubernetes.GetRole(), File: l.Kubernetes.GetTokenFile(), Audience: l.Kubernetes.GetAudience()}, nil
	case *bootstrapv1.VaultProvider_AppRole:
		return vault.AppRole{AuthPath: l.AppRole.GetAuthPath(), RoleID: l.AppRole.GetRoleId(), SecretIDFile: l.AppRole.GetSecretIdFile()}, nil
	case *bootstrapv1.VaultProvider_Aws:
		own, err := aws.Identity(l.Aws.GetRegion())
		if err != nil {
			return nil, err
		}
		return vault.AWS{AuthPath: l.Aws.GetAuthPath(), Role: l.Aws.GetRole(), ServerID: l.Aws.GetServerId(), Region: l.Aws.GetRegion(), Credentials: own}, nil
	}
	return nil, errors.New("vault: this build knows no such login")
}
